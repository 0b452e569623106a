//! Tests of SCSI units, as an initiator.

use super::*;
use crate::MediumError;
use crate::MemoryMedium;
use crate::work::Data;
use crate::work::MOST;
use crate::work::Op;

const BLOCKS: usize = 20_000;

/// A disk that cannot be written.
struct Protected(MemoryMedium);

impl Medium for Protected {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), MediumError> {
        Err(MediumError::Protected)
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(MediumError::Protected)
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(MediumError::Protected)
    }
    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }
}

fn identity() -> Identity {
    Identity {
        model: "OXBOW HARDDISK".to_owned(),
        serial: "SN0001".to_owned(),
        firmware: "1.0".to_owned(),
    }
}

/// A disk whose first attention was taken.
fn disk() -> LogicalUnit {
    let mut unit = LogicalUnit::disk(Arc::new(MemoryMedium::new(vec![0; BLOCKS * 512])), identity());
    assert_eq!(unit.command(&[0; 6]), check(6, 0x29, 0));
    assert_eq!(unit.command(&[0; 6]), Action::Good);
    unit
}

fn protected() -> LogicalUnit {
    let medium = Protected(MemoryMedium::new(vec![0; BLOCKS * 512]));
    let mut unit = LogicalUnit::disk(Arc::new(medium), identity());
    unit.command(&[0; 6]);
    unit
}

fn check(key: u8, code: u8, qualifier: u8) -> Action {
    Action::Check(fixed(Sense(key, code, qualifier)))
}

fn sent(action: Action) -> Vec<u8> {
    match action {
        Action::Send(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

fn inquiry(unit: &mut LogicalUnit, page: Option<u8>) -> Vec<u8> {
    let cdb = match page {
        Some(page) => [0x12, 1, page, 0, 255, 0],
        None => [0x12, 0, 0, 0, 255, 0],
    };
    sent(unit.command(&cdb))
}

fn ten(code: u8, flags: u8, lba: u32, count: u16) -> [u8; 10] {
    let ([a, b, c, d], [h, l]) = (lba.to_be_bytes(), count.to_be_bytes());
    [code, flags, a, b, c, d, 0, h, l, 0]
}

fn sixteen(code: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

#[test]
fn inquiry_names_the_disk() {
    let mut unit = disk();
    let data = inquiry(&mut unit, None);
    assert_eq!(data.len(), 36);
    assert_eq!(&data[8..32], b"OXBOW   HARDDISK        ");
    assert_eq!(sent(unit.command(&[0x12, 0, 0, 0, 5, 0])).len(), 5);
    assert_eq!(
        inquiry(&mut unit, Some(0)),
        [0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    );
    assert_eq!(inquiry(&mut unit, Some(0x80)), b"\0\x80\0\x06SN0001");
    assert_eq!(
        inquiry(&mut unit, Some(0x83)),
        b"\0\x83\0\x12\x02\x01\0\x0eOXBOW   SN0001"
    );
    assert_eq!(unit.command(&[0x12, 1, 0xC0, 0, 255, 0]), check(5, 0x24, 0));
    let mut drive = LogicalUnit::optical(None, identity());
    assert_eq!(inquiry(&mut drive, Some(0)), [5, 0, 0, 3, 0, 0x80, 0x83]);
    assert_eq!(drive.command(&[0x12, 1, 0xB0, 0, 255, 0]), check(5, 0x24, 0));
}

#[test]
fn limits_and_provisioning_are_told() {
    let limits = inquiry(&mut disk(), Some(0xB0));
    assert_eq!(limits.len(), 64);
    assert_eq!(limits[8..12], ((MOST / 512) as u32).to_be_bytes());
    assert_eq!(limits[20..24], disk::UNMAP_BLOCKS.to_be_bytes());
    assert_eq!(limits[36..44], disk::SAME_BLOCKS.to_be_bytes());
    assert_eq!(inquiry(&mut disk(), Some(0xB2))[4..], [0, 0xE4, 2, 0]);
    assert_eq!(inquiry(&mut protected(), Some(0xB2))[4..], [0; 4]);
    assert_eq!(inquiry(&mut protected(), Some(0xB0))[20..44], [0; 24]);
}

#[test]
fn capacity_is_told_in_both_forms() {
    let mut unit = disk();
    let last = (BLOCKS as u32 - 1).to_be_bytes();
    assert_eq!(
        sent(unit.command(&ten(0x25, 0, 0, 0))),
        [last, 512u32.to_be_bytes()].concat()
    );
    let data = sent(unit.command(&sixteen(0x9E, 0x10, 0, 32)));
    assert_eq!((&data[4..8], data[13], data[14]), (&last[..], 3, 0xC0));
    assert_eq!(unit.command(&sixteen(0x9E, 0x11, 0, 32)), check(5, 0x20, 0));
}

#[test]
fn every_form_of_transfer_says_where() {
    let mut unit = disk();
    let moved = |action| match action {
        Action::Move(request) => (request.op, request.offset / 512, request.len / 512),
        other => panic!("{other:?}"),
    };
    assert_eq!(moved(unit.command(&[0x08, 0, 1, 2, 3, 0])), (Op::Read, 0x102, 3));
    // No blocks are 256 of them here, and the upper bits of the second byte are no address.
    assert_eq!(moved(unit.command(&[0x08, 0xE0, 0, 2, 0, 0])), (Op::Read, 2, 256));
    let plain = Op::Write { through: false };
    assert_eq!(moved(unit.command(&[0x0A, 0, 1, 2, 3, 0])), (plain, 0x102, 3));
    assert_eq!(moved(unit.command(&ten(0x28, 0, 7, 9))), (Op::Read, 7, 9));
    let through = Op::Write { through: true };
    assert_eq!(moved(unit.command(&ten(0x2A, 8, 7, 9))), (through, 7, 9));
    assert_eq!(moved(unit.command(&ten(0x2E, 0, 7, 9))), (through, 7, 9));
    assert_eq!(
        moved(unit.command(&[0xA8, 0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0])),
        (Op::Read, 5, 6)
    );
    assert_eq!(moved(unit.command(&sixteen(0x8A, 0, 11, 12))), (plain, 11, 12));
    assert_eq!(unit.command(&ten(0x28, 0, 7, 0)), Action::Good);
    assert_eq!(unit.command(&ten(0x28, 0, BLOCKS as u32 - 1, 2)), check(5, 0x21, 0));
    assert_eq!(unit.command(&sixteen(0x88, 0, u64::MAX, 1)), check(5, 0x21, 0));
    assert_eq!(unit.command(&ten(0x28, 0x20, 0, 1)), check(5, 0x24, 0));
    assert_eq!(unit.command(&ten(0x35, 0, 0, 0)), Action::Ask(Request::flush()));
}

#[test]
fn protected_disk_takes_no_writes() {
    let mut unit = protected();
    for cdb in [ten(0x2A, 0, 0, 1), ten(0x41, 0, 0, 1), ten(0x42, 0, 0, 24)] {
        assert_eq!(unit.command(&cdb), check(7, 0x27, 0));
    }
    assert_eq!(sent(unit.command(&[0x1A, 0, 0x3F, 0, 255, 0]))[2], 0x90);
    assert!(matches!(unit.command(&ten(0x28, 0, 0, 1)), Action::Move(_)));
}

#[test]
fn unmap_takes_ranges() {
    let mut unit = disk();
    let cdb = ten(0x42, 0, 0, 40);
    assert_eq!(unit.command(&cdb), Action::Take(40));
    let mut list = vec![0; 40];
    list[2..4].copy_from_slice(&32u16.to_be_bytes());
    list[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 8]);
    list[24..36].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
    let ranges = Data::Ranges(vec![(16 * 512, 8 * 512), (256 * 512, 512)]);
    let expected = Request::new(Op::Discard { through: false }, 0, 0, ranges);
    assert_eq!(unit.receive(&cdb, &list), Action::Ask(expected));
    // A descriptor that is cut off is none.
    list.truncate(30);
    assert!(matches!(unit.receive(&cdb, &list), Action::Ask(Request { data: Data::Ranges(r), .. }) if r.len() == 1));
    list[8] = 1;
    assert_eq!(unit.receive(&cdb, &list), check(5, 0x21, 0));
    assert_eq!(unit.command(&ten(0x42, 0, 0, 7)), check(5, 0x1A, 0));
    assert_eq!(unit.command(&ten(0x42, 0, 0, 0)), Action::Good);
}

#[test]
fn write_same_writes_zeros_or_a_pattern() {
    let mut unit = disk();
    let asked = |action| match action {
        Action::Ask(request) => (request.op, request.offset / 512, request.len / 512),
        other => panic!("{other:?}"),
    };
    let cdb = ten(0x41, 0, 4, 8);
    assert_eq!(unit.command(&cdb), Action::Take(512));
    assert_eq!(
        asked(unit.receive(&cdb, &[0; 512])),
        (Op::WriteZeroes { through: false }, 4, 8)
    );
    let unmap = ten(0x41, 8, 4, 8);
    assert_eq!(
        asked(unit.receive(&unmap, &[0; 512])),
        (Op::Discard { through: false }, 4, 8)
    );
    let Action::Ask(request) = unit.receive(&unmap, &[7; 512]) else {
        panic!("no request");
    };
    assert_eq!(request.data, Data::Bytes(vec![7; 8 * 512]));
    request.check().unwrap();
    // Without data.
    assert_eq!(
        asked(unit.command(&sixteen(0x93, 9, 4, 8))),
        (Op::Discard { through: false }, 4, 8)
    );
    for count in [0, disk::SAME_BLOCKS as u32 + 1] {
        assert_eq!(unit.command(&sixteen(0x93, 1, 0, count)), check(5, 0x24, 0));
    }
}

/// MODE SELECT of the caching page, with the cache on or off.
fn set_cache(unit: &mut LogicalUnit, on: bool) -> Action {
    let cdb = [0x15, 0x10, 0, 0, 24, 0];
    assert_eq!(unit.command(&cdb), Action::Take(24));
    let mut list = [0; 24];
    (list[4], list[5], list[6]) = (8, 18, if on { 4 } else { 0 });
    unit.receive(&cdb, &list)
}

#[test]
fn write_cache_is_switched_off_and_on() {
    let mut unit = disk();
    let cache = |unit: &mut LogicalUnit| sent(unit.command(&[0x1A, 8, 8, 0, 255, 0]))[6];
    assert_eq!(cache(&mut unit), 4);
    assert_eq!(set_cache(&mut unit, false), Action::Ask(Request::flush()));
    assert_eq!(set_cache(&mut unit, false), Action::Good);
    assert_eq!(cache(&mut unit), 0);
    assert_eq!(sent(unit.command(&[0x1A, 8, 0x48, 0, 255, 0]))[6], 4);
    assert_eq!(sent(unit.command(&[0x1A, 8, 0x88, 0, 255, 0]))[6], 4);
    let through = |op| match op {
        Action::Move(Request {
            op: Op::Write { through },
            ..
        })
        | Action::Ask(Request {
            op: Op::Write { through } | Op::WriteZeroes { through } | Op::Discard { through },
            ..
        }) => through,
        other => panic!("{other:?}"),
    };
    let same = sixteen(0x93, 0, 4, 8);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [0; 24];
    (list[3], list[19]) = (16, 1);
    for on in [false, true] {
        set_cache(&mut unit, on);
        assert_eq!(through(unit.command(&ten(0x2A, 0, 0, 1))), !on);
        assert!(through(unit.command(&ten(0x2A, 8, 0, 1))));
        assert_eq!(through(unit.command(&[0x0A, 0, 0, 0, 1, 0])), !on);
        assert_eq!(through(unit.receive(&same, &[0; 512])), !on);
        assert_eq!(through(unit.receive(&same, &[1; 512])), !on);
        assert_eq!(through(unit.receive(&unmap, &list)), !on);
    }
    set_cache(&mut unit, false);
    let saved = unit.save();
    unit.reset();
    assert_eq!(unit.command(&[0; 6]), check(6, 0x29, 0));
    assert_eq!(cache(&mut unit), 4);
    let mut other = disk();
    other.restore(saved).unwrap();
    assert_eq!(cache(&mut other), 0);
}

#[test]
fn mode_select_is_refused_what_is_not_there() {
    let mut unit = disk();
    assert_eq!(unit.command(&[0x15, 0x10, 0, 0, 0, 0]), Action::Good);
    // Saved pages, pages in a format of the vendor's.
    assert_eq!(unit.command(&[0x15, 0x11, 0, 0, 24, 0]), check(5, 0x24, 0));
    assert_eq!(unit.command(&[0x15, 0x00, 0, 0, 24, 0]), check(5, 0x24, 0));
    let ten = [0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0];
    assert_eq!(unit.command(&ten), Action::Take(28));
    let mut list = [0; 28];
    // RCD cannot be changed.
    (list[8], list[9], list[10]) = (8, 18, 5);
    assert_eq!(unit.receive(&ten, &list), check(5, 0x26, 0));
    list[10] = 0;
    assert_eq!(unit.receive(&ten, &list), Action::Ask(Request::flush()));
}

#[test]
fn reservations_outlive_resets_and_not_the_power() {
    let mut unit = disk();
    let (register, keys) = ([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], [0x5E, 0, 0, 0, 0, 0, 0, 0, 255, 0]);
    let mut list = [0; 24];
    list[15] = 9;
    assert_eq!(unit.command(&register), Action::Take(24));
    assert_eq!(unit.receive(&register, &list), Action::Good);
    unit.reset();
    unit.command(&[0; 6]);
    let saved = unit.save();
    assert_eq!(sent(unit.command(&keys)).len(), 16);
    assert_eq!(unit.command(&[0x16, 0, 0, 0, 0, 0]), Action::Conflict);
    unit.power_off();
    unit.command(&[0; 6]);
    assert_eq!(sent(unit.command(&keys)).len(), 8);
    unit.restore(saved).unwrap();
    assert_eq!(sent(unit.command(&keys)).len(), 16);
}

#[test]
fn attention_is_told_once_and_inquiry_goes_before_it() {
    let mut unit = disk();
    unit.reset();
    inquiry(&mut unit, None);
    let saved = unit.save();
    assert_eq!(unit.command(&ten(0x28, 0, 0, 1)), check(6, 0x29, 0));
    assert!(matches!(unit.command(&ten(0x28, 0, 0, 1)), Action::Move(_)));
    unit.restore(saved).unwrap();
    let sense = sent(unit.command(&[3, 0, 0, 0, 18, 0]));
    assert_eq!((sense[2], sense[12]), (6, 0x29));
    assert_eq!(sent(unit.command(&[3, 0, 0, 0, 18, 0]))[2], 0);
    let drive = LogicalUnit::optical(None, identity()).save();
    assert!(unit.restore(drive).is_err());
}

#[test]
fn cd_drive_speaks_by_its_packets() {
    let disc: Arc<dyn Medium> = Arc::new(MemoryMedium::new(vec![0; 2048 * 10]));
    let mut unit = LogicalUnit::optical(Some(disc), identity());
    assert_eq!(unit.command(&[0; 6]), check(6, 0x29, 0));
    assert_eq!(unit.command(&[0; 6]), Action::Good);
    let Action::Move(request) = unit.command(&ten(0x28, 0, 3, 2)) else {
        panic!("no transfer");
    };
    assert_eq!((request.op, request.offset, request.len), (Op::Read, 6144, 4096));
    assert_eq!(unit.command(&ten(0x28, 0, 9, 2)), check(5, 0x21, 0));
    // Sense data went with the command.
    assert_eq!(sent(unit.command(&[3, 0, 0, 0, 18, 0]))[2], 0);
    assert!(unit.tray().unwrap().eject(false));
    assert_eq!(unit.command(&[0; 6]), check(2, 0x3A, 0));
}

#[test]
fn nobody_is_there_at_other_units() {
    assert_eq!(sent(nobody(&[0x12, 0, 0, 0, 36, 0]))[0], 0x7F);
    assert_eq!(nobody(&[0; 6]), check(5, 0x25, 0));
    let cdb = [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    assert_eq!(
        sent(report_luns(&cdb).unwrap()),
        [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(report_luns(&[0; 6]), None);
}
