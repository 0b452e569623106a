//! The snapshot contract over the registry: every device, and the machine as a whole.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use board::Machine;
use board::StateError;
use device_model::At;
use device_model::Region;
use device_model::Reset;
use device_model::SharedDevice;
use device_model::VmTime;
use device_model::Width;

use crate::fake::everything;
use crate::fake::idle;
use crate::fake::small;
use crate::pc;
use crate::q35;

/// Writes a pattern to every register, at every width, so that the state is far from that after reset.
fn disturb(device: &SharedDevice) {
    let mut value = 0x9e37_79b9_7f4a_7c15_u64;
    let mut device = device.lock();
    let regions: Vec<Region> = device.regions().to_vec();
    for (region, Region { len, widths, .. }) in regions.iter().enumerate() {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            if width < widths.min || width > widths.max {
                continue;
            }
            for offset in (0..*len).step_by(width.bytes() as usize).take(64) {
                value = value.rotate_left(13).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let at = At { region, offset };
                let _ = device.write(at, width, value & width.ones());
                let _ = device.read(at, width);
            }
        }
    }
}

fn pairs(machines: &[Machine; 2]) -> impl Iterator<Item = (&SharedDevice, &SharedDevice)> {
    machines[0].devices().iter().zip(machines[1].devices())
}

/// A machine of each kind with all its devices, twice.
fn twins() -> Vec<[Machine; 2]> {
    let dir = tempfile::TempDir::new().unwrap();
    let express = tempfile::TempDir::new().unwrap();
    let specs = [everything(), pc::everything(&dir), q35::everything(&express)];
    specs.iter().map(|spec| [idle(spec), idle(spec)]).collect()
}

#[test]
fn every_device_restores_what_it_saved_into_a_new_one() {
    for machines in twins() {
        restores(&machines);
    }
}

fn restores(machines: &[Machine; 2]) {
    for (used, new) in pairs(machines) {
        disturb(used);
        let saved = used.lock().save_blob();
        new.lock().restore_blob(&saved).unwrap();
        assert_eq!(new.lock().save_blob(), saved, "{}", used.name());
        used.lock().restore_blob(&saved).unwrap();
        assert_eq!(used.lock().save_blob(), saved, "{}", used.name());
    }
}

#[test]
fn every_device_shows_itself_without_being_disturbed() {
    for machine in twins().iter().flatten() {
        shows(machine);
    }
}

fn shows(machine: &Machine) {
    for device in machine.devices() {
        disturb(device);
        let saved = device.lock().save_blob();
        let shown = device.lock().inspect();
        assert_eq!(device.lock().inspect(), shown, "{}", device.name());
        assert_eq!(device.lock().save_blob(), saved, "{}", device.name());
    }
}

#[test]
fn second_reset_of_every_device_changes_nothing() {
    for machine in twins().iter().flatten() {
        resets(machine);
    }
}

fn resets(machine: &Machine) {
    for device in machine.devices() {
        disturb(device);
        for kind in [Reset::Resume, Reset::Warm, Reset::Cold] {
            device.lock().reset(kind);
            let first = device.lock().save_blob();
            device.lock().reset(kind);
            assert_eq!(device.lock().save_blob(), first, "{} {kind:?}", device.name());
        }
    }
}

#[test]
fn every_device_refuses_the_state_of_another() {
    for machine in twins().iter().flatten() {
        refuses(machine);
    }
}

fn refuses(machine: &Machine) {
    let devices = machine.devices();
    for (one, other) in devices.iter().zip(devices.iter().skip(1)) {
        let blob = other.lock().save_blob();
        if one.lock().save_blob().name != blob.name {
            assert!(one.lock().restore_blob(&blob).is_err(), "{}", one.name());
        }
    }
}

/// Chips that these machines leave out, and where they are tested: UEFI's variables need its image, which not every host has.
const ELSEWHERE: [&str; 1] = ["pflash"];

#[test]
fn every_chip_of_the_registry_is_tested_here_and_has_its_page() {
    let machines = twins();
    let plans = machines.iter().flatten().map(Machine::plan);
    let built: BTreeSet<&str> = plans
        .flat_map(|plan| plan.devices.iter().map(|place| place.chip))
        .collect();
    let known: BTreeSet<&str> = board::chips().collect();
    let missing: Vec<_> = known
        .difference(&built)
        .filter(|chip| !ELSEWHERE.contains(chip))
        .collect();
    assert_eq!(missing, Vec::<&&str>::new(), "left out of the machines that are tested");
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/devices");
    let pages = std::fs::read_dir(pages).unwrap().map(|entry| entry.unwrap().path());
    let pages: BTreeSet<String> = pages
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let wanted: BTreeSet<String> = known.iter().map(|chip| (*chip).to_owned()).collect();
    assert_eq!(pages, wanted, "pages in docs/devices, and chips");
}

/// Seconds for which registers are fuzzed, all devices together.
const FUZZ: Duration = Duration::from_secs(30);

#[test]
fn random_accesses_do_no_harm_to_any_device() {
    let machines: Vec<Machine> = twins().into_iter().map(|[machine, _]| machine).collect();
    let devices: Vec<(&Machine, &SharedDevice)> = machines
        .iter()
        .flat_map(|machine| machine.devices().iter().map(move |device| (machine, device)))
        .collect();
    let each = FUZZ / u32::try_from(devices.len()).unwrap();
    for (seed, (machine, device)) in (1..).zip(devices) {
        let end = Instant::now() + each;
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        // Slow devices get a round at least.
        loop {
            access_at_random(machine, device, &mut random);
            if Instant::now() >= end {
                break;
            }
        }
    }
}

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// A few hundred accesses within the bus's rules, then a reset now and then; what was saved is taken back.
fn access_at_random(machine: &Machine, device: &SharedDevice, random: &mut Random) {
    let name = device.name().to_owned();
    let mut device = device.lock();
    let regions: Vec<Region> = device.regions().to_vec();
    for _ in 0..if regions.is_empty() { 0 } else { 256 } {
        let region = usize::try_from(random.below(regions.len() as u64)).unwrap();
        let Region { len, widths, .. } = regions[region];
        let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword][random.below(4) as usize];
        if width < widths.min || width > widths.max || width.bytes() > len {
            continue;
        }
        let offset = random.below(len) & !(width.bytes() - 1);
        let at = At { region, offset };
        if random.below(3) == 0 {
            let _ = device.read(at, width);
        } else {
            // Small numbers are commands and bits more often than large ones.
            let value = random.next() >> (random.below(8) * 8);
            let _ = device.write(at, width, value & width.ones());
            device.poll(machine.now());
        }
    }
    let saved = device.save_blob();
    device
        .restore_blob(&saved)
        .unwrap_or_else(|error| panic!("{name} refuses its own state: {error}"));
    assert_eq!(device.save_blob(), saved, "{name}");
    let _ = device.inspect();
    if random.below(4) == 0 {
        device.reset([Reset::Resume, Reset::Warm, Reset::Cold][random.below(3) as usize]);
    }
}

#[test]
fn machine_restores_into_a_new_machine() {
    for [used, new] in twins() {
        restores_whole(&used, &new);
    }
}

fn restores_whole(used: &Machine, new: &Machine) {
    let mut later = used.save().unwrap();
    later.time = VmTime::from_ns(1_000_000_000_000);
    used.restore(later).unwrap();
    for device in used.devices() {
        disturb(device);
    }
    used.memory().write(0x1_0ffe, b"across pages").unwrap();
    new.memory().write(0x8000, b"to be cleared").unwrap();
    let saved = used.save().unwrap();
    assert_eq!(saved.time, VmTime::from_ns(1_000_000_000_000));
    assert_ne!(new.save().unwrap(), saved);
    new.restore(saved.clone()).unwrap();
    assert_eq!(new.save().unwrap(), saved);
    let mut text = [0; 12];
    new.memory().read(0x1_0ffe, &mut text).unwrap();
    assert_eq!(&text, b"across pages");
}

#[test]
fn restored_machine_goes_on_from_the_saved_time() {
    let used = idle(&small());
    used.start().unwrap();
    used.pause().unwrap();
    let mut saved = used.save().unwrap();
    saved.time = VmTime::from_ns(86_400_000_000_000);
    let new = idle(&small());
    new.restore(saved.clone()).unwrap();
    new.start().unwrap();
    new.pause().unwrap();
    assert!(new.save().unwrap().time >= saved.time);
}

#[test]
fn restore_refuses_what_does_not_fit() {
    let machine = idle(&small());
    let saved = machine.save().unwrap();
    let refuse = |change: &dyn Fn(&mut board::MachineState)| {
        let mut state = saved.clone();
        change(&mut state);
        assert!(matches!(machine.restore(state), Err(StateError::Restore(_))));
    };
    refuse(&|state| state.cpus.clear());
    refuse(&|state| state.ram_bytes += 4096);
    refuse(&|state| drop(state.devices.pop()));
    refuse(&|state| state.devices.swap(0, 1));
    refuse(&|state| state.devices[0].blob.bytes.clear());
    refuse(&|state| state.devices[0].blob.version += 1);
    refuse(&|state| state.pages.push((0x1000, vec![1; 4095])));
    refuse(&|state| state.pages.push((0xfee0_0000, vec![1; 4096])));
    refuse(&|state| state.pages.push((1, vec![1; 4096])));
    assert!(machine.restore(saved).is_ok());
}
