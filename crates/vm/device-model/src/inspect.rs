//! Live state as a tree that is addressable by path, such as `pc/pit/counter0/mode`.

use std::collections::BTreeMap;

use serde::Serialize;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Node {
    /// Yes or no.
    Bool(bool),
    /// A count, register or address.
    Number(u64),
    /// A name or mode.
    Text(String),
    /// Children by name.
    Tree(BTreeMap<String, Node>),
}

impl Node {
    /// An empty inner node.
    #[must_use]
    pub fn tree() -> Self {
        Self::Tree(BTreeMap::new())
    }

    /// Adds a child and returns the node, so that calls chain. On a leaf nothing happens.
    #[must_use]
    pub fn with(mut self, name: &str, child: impl Into<Self>) -> Self {
        if let Self::Tree(children) = &mut self {
            children.insert(name.to_owned(), child.into());
        }
        self
    }

    /// The node at a `/`-separated path.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(self, |node, part| match node {
                Self::Tree(children) => children.get(part),
                _ => None,
            })
    }
}

impl From<bool> for Node {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Node {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Node {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl From<$t> for Node {
            fn from(value: $t) -> Self {
                Self::Number(u64::from(value))
            }
        }
    )*};
}
number!(u8, u16, u32, u64);

/// What a part of the machine shows of itself.
pub trait Inspect {
    /// The state as a tree. Must not disturb it: no read side effects.
    fn inspect(&self) -> Node;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_finds_nested_nodes_and_nothing_else() {
        let node = Node::tree().with("pit", Node::tree().with("mode", 3u8));
        assert_eq!(node.at("pit/mode"), Some(&Node::Number(3)));
        assert_eq!(node.at("pit/mode/x"), None);
        assert_eq!(node.at("rtc"), None);
    }
}
