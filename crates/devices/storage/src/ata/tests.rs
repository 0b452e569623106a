//! Tests of ATA disks and CD drives.

use std::sync::Arc;

use super::*;
use crate::MemoryMedium;

fn identity() -> Identity {
    Identity {
        model: "OXBOW TEST".to_owned(),
        serial: "S1".to_owned(),
        firmware: "1".to_owned(),
    }
}

fn disk(sectors: usize) -> Drive {
    Drive::disk(Arc::new(MemoryMedium::new(vec![0; sectors * 512])), identity())
}

fn optical(blocks: usize) -> Drive {
    Drive::optical(Some(Arc::new(MemoryMedium::new(vec![0; blocks * 2048]))), identity())
}

fn word(page: &[u8], at: usize) -> u16 {
    bytes::le16(page, at * 2)
}

fn sent(step: Step) -> Vec<u8> {
    match step {
        Step::Send(data) => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn identify_data_have_size_names_and_a_sound_checksum() {
    for sata in [false, true] {
        let page = sent(disk(5000).command(0xEC, &mut Taskfile::default(), sata));
        assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!((bytes::le32(&page, 120), bytes::le64(&page, 200)), (5000, 5000));
        assert_eq!(&page[54..64], b"XOOB WETTS");
        assert_eq!(word(&page, 76) & 0x100 != 0, sata, "queueing");
    }
}

#[test]
fn smart_pages_add_up_to_zero() {
    let mut task = Taskfile {
        mid: [0x4F, 0],
        high: [0xC2, 0],
        ..Taskfile::default()
    };
    for feature in [0xD0, 0xD1] {
        task.features[0] = feature;
        let page = sent(disk(100).command(0xB0, &mut task, false));
        assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
    task.mid[0] = 0;
    assert_eq!(disk(100).command(0xB0, &mut task, false), Step::Fail(error::ABRT));
}

#[test]
fn the_three_forms_of_address_reach_the_same_sector() {
    let mut drive = disk(100_000);
    let offset = |step| match step {
        Step::Move(transfer) => (transfer.offset / SECTOR, transfer.len / SECTOR),
        other => panic!("{other:?}"),
    };
    let mut short = Taskfile {
        device: 0x40,
        ..Taskfile::default()
    };
    short.set_lba28(12_345);
    short.count[0] = 0;
    assert_eq!(offset(drive.command(0x20, &mut short, false)), (12_345, 256));
    let mut long = Taskfile::default();
    long.set_lba48(12_345);
    long.count = [3, 0];
    assert_eq!(offset(drive.command(0x24, &mut long, false)), (12_345, 3));
    // Cylinder 12, head 3, sector 61 of 16 heads and 63 sectors.
    let chs = Taskfile {
        mid: [12, 0],
        device: 3,
        low: [61, 0],
        count: [1, 0],
        ..Taskfile::default()
    };
    assert_eq!(offset(drive.command(0x20, &mut chs.clone(), false)), (12_345, 1));
    long.count = [0, 0];
    long.set_lba48(100_000 - 65_535);
    assert_eq!(drive.command(0x24, &mut long, false), Step::Fail(error::IDNF));
}

#[test]
fn trim_ranges_beyond_the_end_are_refused() {
    let mut drive = disk(1000);
    let mut task = Taskfile {
        features: [1, 0],
        count: [1, 0],
        ..Taskfile::default()
    };
    assert_eq!(drive.command(0x06, &mut task, true), Step::Take(512));
    let mut block = vec![0; 512];
    bytes::put(&mut block, 0, &(10u64 | 5 << 48).to_le_bytes());
    let Step::Ask(request) = drive.receive(0x06, &task, &block) else {
        panic!("no request");
    };
    assert_eq!(request.data, crate::work::Data::Ranges(vec![(5120, 2560)]));
    bytes::put(&mut block, 8, &(999u64 | 2 << 48).to_le_bytes());
    assert_eq!(drive.receive(0x06, &task, &block), Step::Fail(error::IDNF));
}

#[test]
fn disc_that_was_changed_is_told_once() {
    let mut drive = optical(100);
    let ready = [0u8; 12];
    let mut sense = [0u8; 12];
    (sense[0], sense[4]) = (0x03, 18);
    assert_eq!(drive.packet(&ready), Step::Fail(0x64), "it was reset");
    assert_eq!(sent(drive.packet(&sense))[12], 0x29);
    assert_eq!(drive.packet(&ready), Step::End);
    let tray = drive.tray().unwrap();
    assert!(tray.eject(false));
    assert_eq!(drive.packet(&ready), Step::Fail(0x24));
    assert_eq!(sent(drive.packet(&sense))[12], 0x3A);
    drive.tray().unwrap().insert(Arc::new(MemoryMedium::new(vec![0; 2048])));
    let mut event = [0u8; 12];
    (event[0], event[1], event[4], event[8]) = (0x4A, 1, 1 << 4, 8);
    assert_eq!(sent(drive.packet(&event))[4..6], [2, 2], "new medium");
    assert_eq!(drive.packet(&ready), Step::Fail(0x64));
    assert_eq!(drive.packet(&ready), Step::End);
}

#[test]
fn locked_tray_is_only_asked() {
    let mut drive = optical(100);
    drive.packet(&[0; 12]);
    let mut lock = [0u8; 12];
    (lock[0], lock[4]) = (0x1E, 1);
    assert_eq!(drive.packet(&lock), Step::End);
    let mut eject = [0u8; 12];
    (eject[0], eject[4]) = (0x1B, 2);
    assert_eq!(drive.packet(&eject), Step::Fail(0x54));
    assert!(!drive.tray().unwrap().eject(false));
    assert!(drive.tray().unwrap().is_loaded());
    assert!(drive.tray().unwrap().eject(true));
}

#[test]
fn every_packet_is_answered_without_a_panic() {
    for code in 0..=255u8 {
        for fill in [0u8, 0xFF, 0x11, 0x40] {
            let mut drive = optical(3);
            drive.packet(&[0; 12]);
            let mut packet = [fill; 12];
            packet[0] = code;
            drive.packet(&packet);
            drive.packet(&packet[..1]);
        }
    }
}
