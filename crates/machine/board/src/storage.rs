//! Disk images as the media of drives, and the threads that read and write them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use chipset::fdc;
use chipset::fdc::FloppyMedium;
use disk_image::BlockError;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::Image;
use disk_image::OpenOptions;
use spec::CacheMode;
use spec::DiskConfig;
use storage::Executor;
use storage::Job;
use storage::Medium;
use storage::MediumError;

use crate::BuildError;

/// Failures that are told of each image; a guest may cause any number.
const TOLD: u32 = 10;
/// Bytes at both ends of an image that say what it is.
const ENDS: u64 = 512;

/// An image.
pub(crate) struct ImageMedium {
    image: Arc<dyn Image>,
    size: u64,
    read_only: bool,
    cache: CacheMode,
    /// The format was found out, and is none: the guest must not make it another.
    guard: bool,
    told: AtomicU32,
}

impl ImageMedium {
    /// Opens a hard disk's image.
    pub(crate) fn disk(config: &DiskConfig) -> Result<Arc<Self>, BuildError> {
        let format = config.format.as_deref().map(str::parse::<Format>).transpose()?;
        Self::open(&config.image, format, config.read_only, config.cache).map(Arc::new)
    }

    /// Opens a disc's image.
    pub(crate) fn disc(path: &Path) -> Result<Arc<Self>, BuildError> {
        Self::open(path, None, true, CacheMode::Writeback).map(Arc::new)
    }

    /// Opens a floppy disk's image. One that the user may not write is write-protected.
    pub(crate) fn floppy(path: &Path, read_only: bool) -> Result<Self, BuildError> {
        let denied = |error: &BuildError| match error {
            BuildError::Image(BlockError::Io { source, .. }) => {
                let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
                kinds.contains(&source.kind())
            }
            _ => false,
        };
        let medium = match Self::open(path, None, read_only, CacheMode::Writeback) {
            Err(error) if !read_only && denied(&error) => Self::open(path, None, true, CacheMode::Writeback)?,
            opened => opened?,
        };
        if !fdc::is_floppy_size(medium.size) {
            let (path, len) = (path.to_owned(), medium.size);
            return Err(BuildError::Floppy { path, len });
        }
        Ok(medium)
    }

    fn open(path: &Path, format: Option<Format>, read_only: bool, cache: CacheMode) -> Result<Self, BuildError> {
        let options = OpenOptions {
            write: !read_only,
            format,
            share: false,
        };
        let files: Arc<dyn Files> = Arc::new(HostFiles {
            direct: cache.is_direct(),
            ..HostFiles::default()
        });
        let image = disk_image::open_in(&files, path, &options)?;
        let info = image.info();
        tracing::info!(path = %path.display(), format = %info.format, size = info.size, "image");
        Ok(Self {
            image,
            size: info.size,
            read_only: !info.writable,
            cache,
            guard: format.is_none() && info.format == Format::Raw,
            told: AtomicU32::new(0),
        })
    }

    fn told(&self, what: &'static str, result: disk_image::Result<()>) -> Result<(), MediumError> {
        let error = match result {
            Ok(()) => return Ok(()),
            Err(BlockError::ReadOnly { .. }) => return Err(MediumError::Protected),
            Err(BlockError::OutOfRange { .. }) => return Err(MediumError::Beyond),
            Err(error) => error,
        };
        if self.told.fetch_add(1, Ordering::Relaxed) < TOLD {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, source, "cannot {what} a disk image");
        }
        Err(MediumError::Failed)
    }

    /// What a write has come to, once it is as safe as the user wants it to be.
    fn written(&self, result: disk_image::Result<()>) -> Result<(), MediumError> {
        self.told("write", result)?;
        if self.cache.is_through() {
            self.told("flush", self.image.flush())?;
        }
        Ok(())
    }

    /// Refuses a write that would make the image look like one of a format that refers to other files.
    fn guard(&self, offset: u64, buf: &[u8]) -> Result<(), MediumError> {
        let end = offset.saturating_add(buf.len() as u64);
        let tail = self.size.saturating_sub(ENDS);
        for start in [0, tail] {
            if !self.guard || offset >= start + ENDS || end <= start {
                continue;
            }
            let mut sector = vec![0; ENDS.min(self.size - start) as usize];
            self.told("read", self.image.read_at(start, &mut sector))?;
            // Where the two overlap.
            let (into, from) = (offset.saturating_sub(start), start.saturating_sub(offset));
            let new = buf.iter().skip(from as usize);
            for (old, new) in sector.iter_mut().skip(into as usize).zip(new) {
                *old = *new;
            }
            if is_marked(&sector) {
                tracing::warn!(
                    "the guest may not turn a raw image into one of another format; say format=raw to let it"
                );
                return Err(MediumError::Failed);
            }
        }
        Ok(())
    }

    /// What users are told of it.
    pub(crate) fn describe(&self, path: &Path) -> crate::drives::Medium {
        crate::drives::Medium {
            path: path.to_owned(),
            read_only: self.read_only,
        }
    }

    /// Saves what was written, as when the guest flushes.
    pub(crate) fn settle(&self) {
        if !self.read_only {
            // Why it failed has been told.
            let _ = self.told("flush", self.image.flush());
        }
    }
}

/// Whether a first or last sector is that of an image format.
fn is_marked(sector: &[u8]) -> bool {
    let marks: [(usize, &[u8]); 7] = [
        (0, b"QFI\xfb"),
        (0, b"KDMV"),
        (0, b"COWD"),
        (0, b"vhdxfile"),
        (0, b"conectix"),
        (0, b"# Disk DescriptorFile"),
        (64, &[0x7f, 0x10, 0xda, 0xbe]),
    ];
    let has = |(at, mark): &(usize, &[u8])| sector.get(*at..at + mark.len()) == Some(*mark);
    marks.iter().any(has)
}

impl Medium for ImageMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        self.told("read", self.image.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MediumError> {
        self.guard(offset, buf)?;
        self.written(self.image.write_at(offset, buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        self.written(self.image.write_zeroes(offset, len))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        self.written(self.image.discard(offset, len))
    }

    fn flush(&self) -> Result<(), MediumError> {
        if self.cache == CacheMode::Unsafe {
            return Ok(());
        }
        self.told("flush", self.image.flush())
    }
}

/// An image as the medium of a floppy drive.
pub(crate) struct FloppyDisk(pub(crate) Arc<ImageMedium>);

impl FloppyMedium for FloppyDisk {
    fn len(&self) -> u64 {
        self.0.size
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer).map_err(io::Error::other)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes).map_err(io::Error::other)
    }
}

/// Threads at most: a host that hangs on one image keeps others going.
const THREADS: usize = 16;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// How often a thread found no work.
    rests: u64,
}

/// The threads that carry out requests to media or files. They come when there is work, and end when there is none for a while.
pub(crate) struct Workers {
    /// What they work for: the threads are called so.
    name: &'static str,
    queue: Mutex<Queue>,
    /// A job has come: for one thread that waits.
    work: Condvar,
    /// A thread has become idle: for those who wait until all have. Apart, or idle threads would wake one another for ever.
    rest: Condvar,
}

impl Default for Workers {
    fn default() -> Self {
        Self::new("disk")
    }
}

impl Workers {
    /// Workers for what is called `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            queue: Mutex::default(),
            work: Condvar::new(),
            rest: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a thread.
    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            queue.rests += 1;
            self.rest.notify_all();
            let waited = self.work.wait_timeout(queue, IDLE);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                self.rest.notify_all();
                return;
            }
        }
    }

    /// Waits until all jobs are done, for at most `limit`.
    pub(crate) fn settle(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut queue = self.lock();
        while !queue.jobs.is_empty() || queue.idle < queue.threads {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.rest.wait_timeout(queue, left);
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// [`Workers`], shared with their threads.
pub(crate) struct WorkerPool(pub(crate) Arc<Workers>);

impl Executor for WorkerPool {
    fn run(&self, job: Job) {
        let mut queue = self.0.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < THREADS {
            let workers = Arc::clone(&self.0);
            let spawned = std::thread::Builder::new()
                .name(self.0.name.to_owned())
                .spawn(move || workers.work());
            match spawned {
                Ok(_) => queue.threads += 1,
                // Those that there are do it; without any, the request hangs until the guest gives up on it.
                Err(error) => tracing::warn!(%error, name = self.0.name, "cannot start a worker's thread"),
            }
        }
        self.0.work.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn raw(format: Option<&str>) -> (tempfile::TempDir, Arc<ImageMedium>) {
        let dir = tempfile::TempDir::new().unwrap();
        let image = dir.path().join("disk");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let config = DiskConfig {
            image,
            format: format.map(str::to_owned),
            ..DiskConfig::default()
        };
        let medium = ImageMedium::disk(&config).unwrap();
        (dir, medium)
    }

    #[test]
    fn guest_cannot_make_a_probed_raw_image_another_format() {
        let (_dir, medium) = raw(None);
        let mut sector = [0; 1024];
        sector[512..516].copy_from_slice(b"QFI\xfb");
        assert_eq!(medium.write_at(0, &sector), Ok(()));
        assert_eq!(medium.write_at(0, &sector[512..]), Err(MediumError::Failed));
        assert_eq!(medium.write_at(0, b"Q"), Ok(()));
        assert_eq!(medium.write_at(1, b"FI\xfb"), Err(MediumError::Failed));
        let footer = (1 << 20) - 512;
        assert_eq!(medium.write_at(footer, b"conectix"), Err(MediumError::Failed));
        assert_eq!(medium.write_at(footer - 512, b"conectix"), Ok(()));
        let (_dir, named) = raw(Some("raw"));
        assert_eq!(named.write_at(0, b"QFI\xfb"), Ok(()));
    }

    #[test]
    fn writes_through_the_cache_are_in_the_file_at_once() {
        let dir = tempfile::TempDir::new().unwrap();
        for (cache, safe) in [
            (CacheMode::Writethrough, true),
            (CacheMode::Directsync, true),
            (CacheMode::Writeback, false),
            (CacheMode::None, false),
        ] {
            let image = dir.path().join(format!("{cache:?}.qcow2"));
            let options = disk_image::CreateOptions::new(Format::Qcow2, 1 << 20);
            let files: Arc<dyn Files> = Arc::new(HostFiles::default());
            disk_image::create(&files, &image, &options).unwrap();
            let config = DiskConfig {
                image: image.clone(),
                cache,
                ..DiskConfig::default()
            };
            let medium = ImageMedium::disk(&config).unwrap();
            medium.write_at(0, &[7; 512]).unwrap();
            let copy = dir.path().join("copy.qcow2");
            std::fs::copy(&image, &copy).unwrap();
            let copy = disk_image::open(&copy, &OpenOptions::default()).unwrap();
            let mut got = [0; 512];
            copy.read_at(0, &mut got).unwrap();
            assert_eq!(got == [7; 512], safe, "{cache:?}");
        }
    }

    #[test]
    fn jobs_run_side_by_side_and_settle() {
        let workers = Arc::new(Workers::default());
        let pool = WorkerPool(Arc::clone(&workers));
        let (sender, receiver) = mpsc::channel::<()>();
        let (done, dones) = mpsc::channel();
        pool.run(Box::new(move || {
            let _ = receiver.recv();
        }));
        // The first one waits for what is only sent after the second has ended.
        pool.run(Box::new(move || done.send(()).unwrap()));
        dones.recv().unwrap();
        sender.send(()).unwrap();
        workers.settle(Duration::from_secs(60));
        let queue = workers.lock();
        assert_eq!((queue.jobs.len(), queue.idle), (0, queue.threads));
    }

    #[test]
    fn idle_threads_sleep() {
        let workers = Arc::new(Workers::default());
        let pool = WorkerPool(Arc::clone(&workers));
        for _ in 0..8 {
            pool.run(Box::new(|| std::thread::sleep(Duration::from_millis(20))));
        }
        workers.settle(Duration::from_secs(60));
        let before = workers.lock().rests;
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(workers.lock().rests, before);
    }
}
