//! Shared folders.

use std::sync::Arc;

use device_model::SharedDevice;
use shared_folder::Folder;
use shared_folder::fuse::CachePolicy;
use shared_folder::fuse::FuseConfig;
use shared_folder::fuse::FuseServer;
use shared_folder::nine_p::NinePServer;
use spec::MachineSpec;
use spec::ShareCache;
use spec::ShareConfig;
use spec::ShareProtocol;
use storage::Executor;
use virtio::fs;
use virtio::fs::Fs;
use virtio::fs::FsConfig;
use virtio::nine_p::NineP;

use super::Builder;
use super::virtio::build;
use super::virtio::place;
use super::waker;
use crate::BuildError;
use crate::Placement;
use crate::storage::WorkerPool;
use crate::storage::Workers;

/// Names and chips of the shares of a spec.
pub(super) fn all(spec: &MachineSpec) -> impl Iterator<Item = (String, &'static str, u32)> {
    (0u32..).zip(&spec.devices.shares).map(|(index, share)| {
        let chip = match share.protocol {
            ShareProtocol::Virtiofs => "virtio_fs",
            ShareProtocol::NineP => "virtio_9p",
        };
        (format!("share{index}"), chip, index)
    })
}

pub(super) fn place_fs(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_fs")
}

pub(super) fn place_9p(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_9p")
}

/// The share that a placement is of, and its folder.
fn open<'a>(builder: &Builder<'a>, place: &Placement) -> Result<(&'a ShareConfig, Folder), BuildError> {
    let index = usize::try_from(place.index).unwrap_or(usize::MAX);
    let share = builder.spec.devices.shares.get(index);
    let share = share.ok_or_else(|| BuildError::Windows(place.name.clone()))?;
    let folder = Folder::open(&share.path, share.read_only)?;
    tracing::info!(tag = share.tag, path = %share.path.display(), read_only = share.read_only, "share");
    Ok((share, folder))
}

/// Workers of its own: files that hang keep nobody else waiting.
fn executor() -> Arc<dyn Executor> {
    Arc::new(WorkerPool(Arc::new(Workers::new("share"))))
}

pub(super) fn build_fs(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let (share, folder) = open(builder, place)?;
    let cache = match share.cache {
        ShareCache::Auto => CachePolicy::Auto,
        ShareCache::Never => CachePolicy::Never,
        ShareCache::Always => CachePolicy::Always,
    };
    let writeback = share.writeback;
    let server = FuseServer::new(folder, FuseConfig { cache, writeback });
    let config = FsConfig {
        tag: share.tag.clone(),
        queues: u16::try_from(builder.spec.cpus).map_or(fs::QUEUES, |cpus| cpus.min(fs::QUEUES)),
    };
    let waker = waker(builder, place);
    let device = Fs::new(Arc::new(server), config, &builder.memory, &executor(), &waker);
    Ok(build(builder, place, device))
}

pub(super) fn build_9p(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let (share, folder) = open(builder, place)?;
    let (server, waker) = (Arc::new(NinePServer::new(folder)), waker(builder, place));
    let device = NineP::new(server, &share.tag, &builder.memory, &executor(), &waker);
    Ok(build(builder, place, device))
}
