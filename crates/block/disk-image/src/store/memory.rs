//! Files in memory, for tests and fuzzing. Pages that were never written take no memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::Access;
use super::FileId;
use super::Files;
use super::Store;
use crate::BlockError;
use crate::Result;

const PAGE: usize = 4096;

/// A file in memory with a limit to its contents.
#[derive(Debug)]
pub struct MemoryStore {
    content: Mutex<Content>,
    /// Pages at most.
    limit: usize,
}

#[derive(Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl MemoryStore {
    /// An empty file that holds at most `limit` bytes of data.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            content: Mutex::default(),
            limit: limit.div_ceil(PAGE),
        }
    }

    /// A file with these bytes.
    #[must_use]
    pub fn with(bytes: &[u8], limit: usize) -> Self {
        let store = Self::new(limit.max(bytes.len()));
        // Within the limit, this cannot fail.
        let _ = store.write_at(0, bytes);
        store
    }

    /// All bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let len = usize::try_from(self.content().len).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(self.limit * PAGE * 4)];
        let _ = self.read_at(0, &mut bytes);
        bytes
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of `offset..offset + len` by page: number, start within the page, start within the range, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let part = (PAGE - within).min(len - done);
        let item = (at / PAGE as u64, within, done, part);
        done += part;
        (part > 0).then_some(item)
    })
}

impl Store for MemoryStore {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let content = self.content();
        let len = usize::try_from(content.len.saturating_sub(offset)).map_or(buf.len(), |rest| rest.min(buf.len()));
        let buf = buf.get_mut(..len).unwrap_or_default();
        buf.fill(0);
        for (number, within, start, part) in parts(offset, len) {
            let page = content
                .pages
                .get(&number)
                .and_then(|page| page.get(within..within + part));
            if let (Some(page), Some(out)) = (page, buf.get_mut(start..start + part)) {
                out.copy_from_slice(page);
            }
        }
        Ok(len)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|&end| i64::try_from(end).is_ok());
        let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut content = self.content();
        for (number, within, start, part) in parts(offset, buf.len()) {
            if content.pages.len() >= self.limit && !content.pages.contains_key(&number) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let page = content.pages.entry(number).or_insert_with(|| Box::new([0; PAGE]));
            if let (Some(page), Some(part)) = (page.get_mut(within..within + part), buf.get(start..start + part)) {
                page.copy_from_slice(part);
            }
        }
        content.len = content.len.max(end);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if i64::try_from(len).is_err() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut content = self.content();
        if len < content.len {
            content.pages.split_off(&len.div_ceil(PAGE as u64));
            let tail = (len % PAGE as u64) as usize;
            if let Some(page) = content.pages.get_mut(&(len / PAGE as u64)) {
                page.get_mut(tail..).unwrap_or_default().fill(0);
            }
        }
        content.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _keep: bool) -> io::Result<()> {
        let mut content = self.content();
        let end = offset.saturating_add(len).min(content.len);
        let touched: Vec<u64> = content
            .pages
            .range(offset / PAGE as u64..end.div_ceil(PAGE as u64).max(offset / PAGE as u64))
            .map(|(&number, _)| number)
            .collect();
        for number in touched {
            let base = number * PAGE as u64;
            let from = offset.saturating_sub(base).min(PAGE as u64) as usize;
            let to = end.saturating_sub(base).min(PAGE as u64) as usize;
            if from == 0 && to == PAGE {
                content.pages.remove(&number);
            } else if let Some(page) = content.pages.get_mut(&number) {
                page.get_mut(from..to).unwrap_or_default().fill(0);
            }
        }
        Ok(())
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        let content = self.content();
        let end = content.len.max(offset + 1);
        let number = offset / PAGE as u64;
        if !content.pages.contains_key(&number) {
            let next = content.pages.range(number..).next();
            return Ok((false, next.map_or(end, |(&next, _)| next * PAGE as u64)));
        }
        let mut last = number;
        while content.pages.contains_key(&(last + 1)) {
            last += 1;
        }
        Ok((true, ((last + 1) * PAGE as u64).min(end)))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok((self.content().pages.len() * PAGE) as u64)
    }
}

/// Files in memory by name. Folders are not kept; any name is in whatever folder it says.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<dyn Store>>>>,
}

impl MemoryFiles {
    /// What new files may hold, in bytes.
    const LIMIT: usize = 256 << 20;

    /// Puts a file there, in place of one that was.
    pub fn put(&self, path: impl Into<PathBuf>, store: Arc<dyn Store>) {
        self.files().insert(path.into(), store);
    }

    /// All bytes of a file; none when there is no such file.
    #[must_use]
    pub fn bytes(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let store = self.files().get(path.as_ref()).cloned();
        let Some(store) = store else { return Vec::new() };
        let len = store.length().unwrap_or(0);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0).min(Self::LIMIT * 4)];
        let _ = store.read_at(0, &mut bytes);
        bytes
    }

    /// Names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        self.files().keys().cloned().collect()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<dyn Store>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `a/./b/../c` is `a/c`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// Where a store is in memory tells it from all others.
fn id_of(store: &Arc<dyn Store>) -> FileId {
    (0, Arc::as_ptr(store).cast::<u8>() as u64)
}

impl Files for MemoryFiles {
    fn open(&self, path: &Path, access: Access) -> Result<(Arc<dyn Store>, FileId)> {
        let failed = |kind: io::ErrorKind| BlockError::Io {
            file: path.display().to_string(),
            action: "open",
            source: kind.into(),
        };
        let mut files = self.files();
        let path = plain(path);
        if access == Access::Create {
            if files.contains_key(&path) {
                return Err(failed(io::ErrorKind::AlreadyExists));
            }
            files.insert(path.clone(), Arc::new(MemoryStore::new(Self::LIMIT)));
        }
        let store = files.get(&path).ok_or_else(|| failed(io::ErrorKind::NotFound))?;
        Ok((Arc::clone(store), id_of(store)))
    }

    fn id(&self, path: &Path) -> Option<FileId> {
        self.files().get(&plain(path)).map(id_of)
    }

    fn list(&self, folder: &Path, limit: usize) -> Vec<PathBuf> {
        let folder = plain(folder);
        let files = self.files();
        let inside = files.keys().filter(|path| path.parent() == Some(&folder));
        inside.take(limit).cloned().collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut files = self.files();
        if let Some(store) = files.remove(&plain(from)) {
            files.insert(plain(to), store);
        }
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        if self.id(to).is_some() {
            return Err(BlockError::Io {
                file: to.display().to_string(),
                action: "create",
                source: rustix::io::Errno::EXIST.into(),
            });
        }
        self.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.files().remove(&plain(path));
        Ok(())
    }
}
