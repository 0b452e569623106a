//! Tests of the transport by configuration space, structures and ports.

use test_kit::IrqProbe;
use test_kit::virtio::Link;

use super::*;
use crate::rng::Rng;
use crate::testing::Bench;
use crate::testing::memory;

fn bench(link: Link) -> Bench {
    Bench::new(link, Rng::new(Box::new(|bytes| bytes.len())))
}

fn config(bench: &mut Bench, at: u16) -> u32 {
    bench.device.as_pci().unwrap().config_read(at, Width::Dword)
}

#[test]
fn configuration_space_says_where_everything_is() {
    let mut bench = bench(Link::Pci);
    assert_eq!(config(&mut bench, 0), 0x1005_1af4);
    assert_eq!(config(&mut bench, 0x2c), 0x0004_1af4);
    let (mut at, mut found) = (config(&mut bench, 0x34) as u16 & 0xff, Vec::new());
    while at != 0 {
        let head = config(&mut bench, at);
        if head & 0xff == 9 {
            let bar = config(&mut bench, at + 4) & 0xff;
            let (offset, len) = (config(&mut bench, at + 8), config(&mut bench, at + 12));
            found.push((head >> 24, bar, offset, len));
        }
        at = (head >> 8) as u16 & 0xff;
    }
    let expected = [
        (1, 4, 0, 0x3c),
        (2, 4, 0x3000, 0x1000),
        (3, 4, 0x1000, 1),
        (4, 4, 0x2000, 0x1000),
        (5, 0, 0, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn messages_are_sent_for_queues_and_for_a_broken_device() {
    let mut bench = bench(Link::Pci);
    let link = Link::Pci;
    link.negotiate(&mut *bench.device, u64::MAX);
    let mut capability = 0x40;
    while config(&mut bench, capability) & 0xff != 0x11 {
        capability = (config(&mut bench, capability) >> 8) as u16 & 0xff;
    }
    for vector in 0..2u64 {
        for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x40 + vector), (12, 0)] {
            let at = At {
                region: TABLE,
                offset: vector * 16 + offset,
            };
            bench.device.write(at, Width::Dword, value).unwrap();
        }
    }
    let function = bench.device.as_pci().unwrap();
    function.config_write(capability + 2, Width::Word, 0x8000);
    link.write(&mut *bench.device, 0x10, Width::Word, 0);
    link.write(&mut *bench.device, 0x10, Width::Word, 2);
    assert_eq!(
        link.read(&mut *bench.device, 0x10, Width::Word),
        0xffff,
        "there is no such"
    );
    link.write(&mut *bench.device, 0x10, Width::Word, 0);
    let (rings, device) = (&bench.rings, &mut *bench.device);
    link.enable(device, 0, &rings[0]);
    link.go(device);
    bench.offer(0, &[], &[(0x1000, 1)]);
    let data = |probe: &IrqProbe| probe.take_messages().iter().map(|m| m.data).collect::<Vec<_>>();
    assert_eq!(data(&bench.probe), [0x41]);
    assert!(!bench.probe.level(0));
    bench.offer(0, &[(0x1000, 1)], &[]);
    assert_eq!(data(&bench.probe), [0x40]);
}

#[test]
fn structures_are_reached_through_configuration_space() {
    let mut bench = bench(Link::Pci);
    let mut window = 0x40;
    while config(&mut bench, window) >> 24 != 5 || config(&mut bench, window) & 0xff != 9 {
        window = (config(&mut bench, window) >> 8) as u16 & 0xff;
    }
    let function = bench.device.as_pci().unwrap();
    let mut access = |offset: u32, len: u32, value: Option<u32>| {
        function.config_write(window + 4, Width::Byte, 4);
        function.config_write(window + 8, Width::Dword, offset);
        function.config_write(window + 12, Width::Dword, len);
        match value {
            Some(value) => function.config_write(window + 16, Width::Dword, value),
            None => return function.config_read(window + 16, Width::Dword),
        }
        0
    };
    access(0x14, 1, Some(3));
    assert_eq!(access(0x14, 1, None) & 0xff, 3);
    access(0, 4, Some(1));
    assert_eq!(access(4, 4, None), 1, "version 1 in the upper half");
    // Nothing that is not there, or not aligned, or not a width.
    for (offset, len) in [(0x4000, 4), (0x15, 2), (0x14, 3), (u32::MAX, 1)] {
        access(offset, len, Some(0));
        assert_eq!(access(0x14, 1, None) & 0xff, 3);
    }
}

#[test]
fn nothing_is_done_without_the_bus() {
    let mut bench = bench(Link::Pci);
    bench.start(u64::MAX);
    bench.device.as_pci().unwrap().config_write(4, Width::Word, 3);
    bench.offer(0, &[], &[(0x1000, 1)]);
    assert_eq!(bench.used(0), None);
    bench.device.as_pci().unwrap().config_write(4, Width::Word, 7);
    bench.poll();
    assert_eq!(bench.used(0), Some((0, 1)));
}

#[test]
fn legacy_driver_sees_one_half_of_the_features_and_the_device_s_sizes() {
    let mut bench = bench(Link::Legacy);
    let device = &mut *bench.device;
    assert_eq!(Link::Legacy.offered(device) >> 27, 7, "layout, tables, event indexes");
    assert_eq!(Link::Legacy.queue_size(device, 0), 64);
    assert_eq!(Link::Legacy.queue_size(device, 1), 0);
    bench.start(u64::MAX);
    assert_eq!(Link::Legacy.read(&mut *bench.device, 8, Width::Dword), 0x100);
    // Page 0 takes the queue back.
    Link::Legacy.write(&mut *bench.device, 8, Width::Dword, 0);
    bench.offer(0, &[], &[(0x1000, 1)]);
    assert_eq!(bench.used(0), None);
}

#[test]
fn features_of_one_interface_are_not_those_of_the_other() {
    let mut bench = bench(Link::Pci);
    let device = &mut *bench.device;
    Link::Pci.take(device, u64::MAX);
    for status in [3, 7] {
        Link::Legacy.set_status(device, status);
    }
    assert_eq!(Link::Legacy.status(device), 7);
    let saved = device.save_blob();
    device.restore_blob(&saved).unwrap();
    assert_eq!(device.save_blob(), saved);
}

#[test]
fn used_device_keeps_its_state() {
    for link in [Link::Pci, Link::Legacy] {
        let mut bench = bench(link);
        bench.start(u64::MAX);
        bench.offer(0, &[], &[(0x1000, 1)]);
        let saved = bench.device.save_blob();
        let probe = IrqProbe::new();
        let rng = Rng::new(Box::new(|bytes| bytes.len()));
        let mut other = Pci::new(rng, (probe.line(0), probe.clone() as _), &memory());
        device_model::DynSnapshot::restore_blob(&mut other, &saved).unwrap();
        assert!(probe.level(0));
        assert_eq!(device_model::DynSnapshot::save_blob(&other), saved);
    }
}
