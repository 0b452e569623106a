//! Power cuts while an image is compacted or gets another size: the old disk or the new one is there, whole.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use disk_image::Access;
use disk_image::CreateOptions;
use disk_image::FileId;
use disk_image::Files;
use disk_image::Format;
use disk_image::Image;
use disk_image::MemoryFiles;
use disk_image::OpenOptions;
use disk_image::Recording;
use disk_image::Result;
use disk_image::Store;
use disk_image::Variant;

use crate::kit::KIB;
use crate::kit::Kind;
use crate::kit::Random;
use crate::kit::children;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::parent;
use crate::kit::pattern;
use crate::kit::read_all;

const SIZE: u64 = 256 * KIB;
const LIMIT: usize = 64 << 20;
/// Moments at which the power is cut, of one operation.
const CUTS: usize = 24;

/// Files whose changes are recorded, and the names that they had at any time.
#[derive(Debug, Default)]
struct Recorder {
    live: MemoryFiles,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the identity of the live file.
    recordings: HashMap<FileId, Arc<Recording>>,
    /// All names, with how far each recording was when a name changed, and how far all were together.
    moments: Vec<Moment>,
}

/// Names, and how many operations each file had seen.
type Moment = Vec<(PathBuf, Arc<Recording>, usize)>;

#[derive(Debug)]
struct Tracked {
    recorder: Arc<Recorder>,
    inner: Arc<Recording>,
}

impl Recorder {
    /// Takes over what is there, all of it on the medium.
    fn over(files: &MemoryFiles) -> Arc<Self> {
        let recorder = Self {
            live: files.clone(),
            ..Self::default()
        };
        for path in files.names() {
            let recording = Arc::new(Recording::new(&files.bytes(&path), LIMIT));
            files.put(&path, Arc::clone(&recording) as Arc<_>);
            let id = files.id(&path).unwrap();
            recorder.state.lock().unwrap().recordings.insert(id, recording);
        }
        Arc::new(recorder)
    }

    /// Something has changed.
    fn note(&self) {
        let mut state = self.state.lock().unwrap();
        let names = self.live.names().into_iter();
        let moment = names.filter_map(|path| {
            let recording = state.recordings.get(&self.live.id(&path)?)?;
            Some((path, Arc::clone(recording), recording.position()))
        });
        let moment: Moment = moment.collect();
        state.moments.push(moment);
    }
}

/// The trait wants a reference to the whole; tests have it in an `Arc`.
#[derive(Debug)]
struct Recorded(Arc<Recorder>);

impl Files for Recorded {
    fn open(&self, path: &Path, access: Access) -> Result<(Arc<dyn Store>, FileId)> {
        let Recorder { live, state } = &*self.0;
        let (_, mut id) = live.open(path, access)?;
        if access == Access::Create {
            let recording = Arc::new(Recording::new(&[], LIMIT));
            live.put(path, Arc::clone(&recording) as Arc<_>);
            id = live.id(path).unwrap();
            state.lock().unwrap().recordings.insert(id, recording);
            self.0.note();
        }
        let inner = Arc::clone(&state.lock().unwrap().recordings[&id]);
        let recorder = Arc::clone(&self.0);
        Ok((Arc::new(Tracked { recorder, inner }), id))
    }

    fn id(&self, path: &Path) -> Option<FileId> {
        self.0.live.id(path)
    }

    fn list(&self, folder: &Path, limit: usize) -> Vec<PathBuf> {
        self.0.live.list(folder, limit)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.live.rename(from, to)?;
        self.0.note();
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.live.rename_new(from, to)?;
        self.0.note();
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.0.live.remove(path)?;
        self.0.note();
        Ok(())
    }
}

impl Tracked {
    fn changed(&self, result: io::Result<()>) -> io::Result<()> {
        self.recorder.note();
        result
    }
}

impl Store for Tracked {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.changed(self.inner.write_at(offset, buf))
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed(self.inner.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.changed(self.inner.sync())
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.changed(self.inner.zero(offset, len, keep))
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        self.inner.data_run(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
}

/// Cuts the power at many moments of `operation`, and lets `accept` look at the image that is left.
fn cuts(
    name: &str,
    kind: &CreateOptions,
    memory: &MemoryFiles,
    operation: impl FnOnce(&Arc<dyn Files>),
    accept: impl Fn(&str, &dyn Image),
) {
    let recorder = Recorder::over(memory);
    let files: Arc<dyn Files> = Arc::new(Recorded(Arc::clone(&recorder)));
    operation(&files);
    let moments = std::mem::take(&mut recorder.state.lock().unwrap().moments);
    let mut random = Random::new(moments.len() as u64);
    let step = moments.len().div_ceil(CUTS).max(1);
    // The last moments are those at which the new file takes over.
    let wanted = |index: usize| index.is_multiple_of(step) || index + 8 > moments.len();
    for (index, moment) in moments.iter().enumerate().filter(|(index, _)| wanted(*index)) {
        let left = MemoryFiles::default();
        let chance = [0, 2, 1][random.below(3) as usize];
        for (path, recording, position) in moment {
            left.put(path, Arc::new(recording.cut(*position, || random.below(2) < chance)));
        }
        let name = format!("{name}, cut {index} of {}", moments.len());
        let files: Arc<dyn Files> = Arc::new(left);
        let options = OpenOptions {
            format: Some(kind.format),
            ..OpenOptions::writable()
        };
        let image = disk_image::open_in(&files, Path::new("image"), &options);
        let image = image.unwrap_or_else(|error| panic!("{name}: {error}"));
        let report = image.check(false).unwrap();
        assert!(report.is_sound(), "{name}: {:?}", report.errors);
        accept(&name, &*image);
        image.write_at(0, &[0x5a; 512]).unwrap();
        image.flush().unwrap();
    }
}

/// Kinds of one file, with and without a parent; what the disk holds at first.
fn images() -> Vec<(String, CreateOptions, MemoryFiles, Vec<u8>)> {
    let flat = [
        Variant::MonolithicFlat,
        Variant::TwoGbMaxExtentFlat,
        Variant::TwoGbMaxExtentSparse,
    ];
    let one_file = |(_, kind): &Kind| !flat.contains(&kind.variant);
    let alone = kinds(SIZE).into_iter().filter(one_file).map(|kind| (kind, false));
    let layers = children(SIZE).into_iter().filter(one_file).map(|kind| (kind, true));
    let make = |(index, ((name, mut kind), child)): (u64, (Kind, bool))| {
        let (memory, files) = memory();
        let mut random = Random::new(7000 + index);
        let mut model = vec![0; SIZE as usize];
        if child {
            model = pattern(&mut random, 2 * SIZE);
            let raw = CreateOptions::new(Format::Raw, 0);
            kind.parent = Some(parent(&files, "base", &raw, &model));
            model.truncate(SIZE as usize);
        }
        disk_image::create(&files, Path::new("image"), &kind).unwrap();
        let image = crate::kit::open(&files, "image", &kind, true);
        crate::qemu::scribble(&*image, &mut model, &mut random, 12);
        drop(image);
        (
            format!("{name}{}", if child { " child" } else { "" }),
            kind,
            memory,
            model,
        )
    };
    (0..).zip(alone.chain(layers)).map(make).collect()
}

#[test]
fn power_cuts_while_compacting_change_nothing() {
    for (name, kind, memory, model) in images() {
        let options = OpenOptions {
            format: Some(kind.format),
            ..OpenOptions::default()
        };
        let compact = |files: &Arc<dyn Files>| {
            disk_image::compact(files, Path::new("image"), &options, &mut |_| Ok(())).unwrap();
        };
        cuts(&name, &kind, &memory, compact, |name, image| {
            assert!(read_all(image) == model, "{name}: the disk has changed");
        });
    }
}

#[test]
fn power_cuts_while_resizing_leave_one_of_the_two_sizes() {
    for size in [SIZE + 96 * KIB, SIZE / 2 - 512] {
        for (name, kind, memory, model) in images() {
            let options = OpenOptions {
                format: Some(kind.format),
                ..OpenOptions::default()
            };
            let resize = |files: &Arc<dyn Files>| {
                disk_image::resize(files, Path::new("image"), &options, size, &mut |_| Ok(())).unwrap();
            };
            let name = format!("{name} to {size}");
            cuts(&name, &kind, &memory, resize, |name, image| {
                let found = read_all(image);
                assert!(
                    [SIZE, size].contains(&(found.len() as u64)),
                    "{name}: {} bytes",
                    found.len()
                );
                // What is to be cut off may be gone already.
                let common = SIZE.min(size) as usize;
                assert!(found[..common] == model[..common], "{name}: the disk has changed");
                // Of a fixed VHD, the old footer may still lie there.
                let footer = found
                    .get(common..common + 512)
                    .is_some_and(|part| part.starts_with(b"conectix"));
                let rest = common + if footer && kind.format == Format::Vhd { 512 } else { 0 };
                let grown = found.get(rest..).unwrap_or_default();
                assert!(
                    size < SIZE || grown.iter().all(|&byte| byte == 0),
                    "{name}: the new part is not zeros"
                );
            });
        }
    }
}
