//! Input devices of virtio.

use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::devices::named;

/// A virtio input device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputConfig {
    /// A keyboard.
    Keyboard,
    /// A pointer that knows places of the screen.
    Tablet,
    /// A pointer that knows movement.
    Mouse,
}

impl InputConfig {
    const ALL: [Self; 3] = [Self::Keyboard, Self::Tablet, Self::Mouse];

    /// What is written for it, and its name in the plan.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "keyboard",
            Self::Tablet => "tablet",
            Self::Mouse => "mouse",
        }
    }
}

impl FromStr for InputConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, Self::ALL, Self::name, "input device")
    }
}
