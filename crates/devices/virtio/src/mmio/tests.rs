//! Tests of the transport by registers.

use test_kit::virtio::EVENT_IDX;
use test_kit::virtio::Link;

use super::*;
use crate::feature;
use crate::rng::Rng;
use crate::testing::Bench;

fn bench() -> Bench {
    Bench::new(Link::Mmio, Rng::new(Box::new(|bytes| bytes.len())))
}

fn read(bench: &mut Bench, offset: u64) -> u64 {
    Link::Mmio.read(&mut *bench.device, offset, Width::Dword)
}

#[test]
fn registers_say_what_it_is() {
    let mut bench = bench();
    let said = [0, 4, 8, 0x34, 0x70, 0xb0, 0xfc].map(|offset| read(&mut bench, offset));
    assert_eq!(said, [0x7472_6976, 2, 4, 64, 0, 0xffff_ffff, 0]);
    assert_eq!(Link::Mmio.queue_size(&mut *bench.device, 1), 0);
    let at = At { region: 0, offset: 0 };
    assert_eq!(bench.device.read(at, Width::Byte), Err(IoError::Width));
}

#[test]
fn driver_gets_no_farther_than_features_allow() {
    let mut bench = bench();
    let device = &mut *bench.device;
    let link = Link::Mmio;
    assert_eq!(
        link.offered(device),
        feature::VERSION_1 | feature::INDIRECT_DESC | EVENT_IDX
    );
    // What is not offered, and then without what every driver must take.
    for taken in [feature::VERSION_1 | 1, EVENT_IDX] {
        link.set_status(device, 0);
        link.set_status(device, 3);
        link.take(device, taken);
        link.set_status(device, 0xb);
        assert_eq!(link.status(device), 3);
        link.set_status(device, 0xf);
        assert_eq!(link.status(device), 3, "and not without an agreement");
    }
    link.take(device, feature::VERSION_1);
    link.set_status(device, 0xb);
    assert_eq!(link.status(device), 0xb);
    link.take(device, 0);
    link.write(device, 0x24, Width::Dword, 1);
    link.set_status(device, 0x4f);
    assert_eq!(link.status(device), 0xf, "a driver cannot break it by itself");
}

#[test]
fn queue_in_use_does_not_move_and_can_be_taken_back() {
    let mut bench = bench();
    bench.start(u64::MAX);
    let link = Link::Mmio;
    link.write(&mut *bench.device, 0x38, Width::Dword, 16);
    link.write(&mut *bench.device, 0x80, Width::Dword, 0x7000);
    bench.offer(0, &[], &[(0x1000, 1)]);
    assert_eq!(bench.used(0), Some((0, 1)));
    link.write(&mut *bench.device, 0x44, Width::Dword, 0);
    assert_eq!(read(&mut bench, 0x44), 0);
    bench.offer(0, &[], &[(0x1000, 1)]);
    assert_eq!(bench.used(0), None);
}

#[test]
fn queue_without_memory_breaks_the_device() {
    let mut bench = bench();
    let link = Link::Mmio;
    link.negotiate(&mut *bench.device, u64::MAX);
    link.write(&mut *bench.device, 0x84, Width::Dword, 1);
    link.write(&mut *bench.device, 0x44, Width::Dword, 1);
    assert!(bench.is_broken());
    assert_eq!(read(&mut bench, 0x44), 0);
}

#[test]
fn saved_device_goes_on_in_another() {
    let mut bench = bench();
    bench.start(u64::MAX);
    bench.offer(0, &[], &[(0x1000, 1)]);
    let saved = bench.device.save_blob();
    let rings = std::mem::take(&mut bench.rings);
    let source = Rng::new(Box::new(|bytes| bytes.len()));
    let mut other = Bench::with(Link::Mmio, &bench.memory, source);
    other.rings = rings;
    other.device.restore_blob(&saved).unwrap();
    assert!(other.probe.level(0), "its interrupt is still there");
    assert_eq!(other.used(0), Some((0, 1)));
    other.offer(0, &[], &[(0x1000, 2)]);
    assert_eq!(other.used(0), Some((1, 2)));
    // By the other transport it would be something else.
    let mut pci = Bench::with(Link::Pci, &bench.memory, Rng::new(Box::new(|bytes| bytes.len())));
    assert!(matches!(
        pci.device.restore_blob(&saved),
        Err(RestoreError::Version { .. })
    ));
}
