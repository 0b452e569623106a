//! The bridge with probes at its wires.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use chipset::acpi_pm::AlarmLatch;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;

use super::*;

/// Counts power-offs by ones, suspends by hundreds, resets by ten thousands.
#[derive(Default)]
struct Switch(AtomicU32);

impl PowerControl for Switch {
    fn power_off(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&self) {
        self.0.fetch_add(10_000, Ordering::Relaxed);
    }
    fn suspend(&self) {
        self.0.fetch_add(100, Ordering::Relaxed);
    }
    fn wake(&self) {}
    fn debug_exit(&self, _: u8) {}
}

struct Bench {
    clock: TestClock,
    probe: Arc<IrqProbe>,
    router: Arc<PirqRouter>,
    power: Arc<Switch>,
    chip: Ich9Lpc,
}

fn bench() -> Bench {
    with_clock(&TestClock::new())
}

fn with_clock(clock: &TestClock) -> Bench {
    let (probe, power) = (IrqProbe::new(), Arc::<Switch>::default());
    let direct = std::array::from_fn(|line| probe.line(16 + line as u32));
    let router = PirqRouter::ich9(|irq| probe.line(irq), direct);
    let time: Arc<dyn Clock> = Arc::new(clock.clone());
    let pm = AcpiPm::new(time.clone(), probe.line(9), power.clone(), AlarmLatch::new(|| ()));
    let chip = Ich9Lpc::new(Arc::clone(&router), pm, time, power.clone());
    Bench {
        clock: clock.clone(),
        probe,
        router,
        power,
        chip,
    }
}

impl Bench {
    fn write(&mut self, region: usize, offset: u64, width: Width, value: u64) {
        self.chip.write(At { region, offset }, width, value).unwrap();
    }

    fn read(&mut self, region: usize, offset: u64, width: Width) -> u64 {
        self.chip.read(At { region, offset }, width).unwrap()
    }

    fn pass(&mut self, seconds: u64) {
        self.clock.advance(seconds * 1_000_000_000);
        let now = self.clock.now();
        self.chip.poll(now);
    }
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || Box::new(with_clock(&clock).chip));
}

#[test]
fn eight_lines_follow_their_registers() {
    let mut bench = bench();
    bench.router.pin(31, 1).set(true);
    bench.router.pin(2, 1).set(true);
    assert!(bench.probe.level(16) && bench.probe.level(22), "pins of the I/O APIC");
    bench.chip.config_write(PIRQA_ROUT, Width::Byte, 11);
    bench.chip.config_write(PIRQE_ROUT + 2, Width::Byte, 10);
    assert!(bench.probe.level(11) && bench.probe.level(10));
    bench.chip.config_write(PIRQA_ROUT, Width::Byte, 0x0d);
    assert!(!bench.probe.level(11) && !bench.probe.level(13));
    bench.chip.reset(Reset::Warm);
    assert!(!bench.probe.level(10));
}

#[test]
fn registers_appear_where_firmware_puts_them() {
    let mut bench = bench();
    bench.chip.config_write(PMBASE, Width::Dword, 0xffff_0601);
    bench.chip.config_write(RCBA, Width::Dword, 0xfed1_c000);
    assert_eq!(bench.chip.windows(), []);
    bench.chip.config_write(ACPI_CNTL, Width::Byte, 0x80);
    bench.chip.config_write(RCBA, Width::Dword, 0xfed1_c001);
    let places: Vec<_> = bench.chip.windows().iter().map(|w| (w.region, w.base, w.len)).collect();
    assert_eq!(places, [(PM, 0x600, 128), (CONFIG, 0xfed1_c000, 0x4000)]);
    assert_eq!(bench.read(PM, SMI_EN, Width::Dword), 0x20, "APMC_EN");
    assert_eq!(bench.read(CONFIG, 0x3410, Width::Dword), 0x20, "NO_REBOOT");
}

#[test]
fn acpi_registers_are_at_the_places_of_an_ich9() {
    let mut bench = bench();
    bench.write(SMI_COMMAND, 0, Width::Byte, 0xf1);
    bench.write(PM, 2, Width::Word, 0x100);
    bench.chip.pm().press_power_button();
    assert!(bench.probe.level(9));
    assert_eq!(bench.read(PM, 0, Width::Dword), 0x0100_0100);
    bench.write(PM, 0, Width::Word, 0x100);
    assert!(!bench.probe.level(9));
    bench.write(PM, 0x28, Width::Dword, 0x0002);
    bench.chip.pm().raise_gpe(1);
    assert!(bench.probe.level(9));
    assert_eq!(bench.read(PM, 0x20, Width::Dword), 2);
    assert_eq!(bench.read(PM, 0x29, Width::Dword), 0, "an access across registers");
    bench.write(PM, 0x20, Width::Dword, 2);
    assert!(!bench.probe.level(9));
    bench.write(PM, 4, Width::Dword, 0x2001);
    bench.write(PM, 4, Width::Word, 0x2401);
    assert_eq!(bench.power.0.load(Ordering::Relaxed), 101);
}

#[test]
fn watchdog_resets_when_it_ends_twice_and_may() {
    let mut bench = bench();
    let resets = |bench: &Bench| bench.power.0.load(Ordering::Relaxed) / 10_000;
    bench.pass(1000);
    assert_eq!(bench.read(PM, TCO + 4, Width::Dword), 0, "halted");
    // Ten steps of 0.6 s.
    bench.write(PM, TCO + 0x12, Width::Word, 10);
    bench.write(PM, TCO, Width::Word, 1);
    bench.write(PM, TCO + 8, Width::Word, 0);
    bench.pass(3);
    assert_eq!(bench.read(PM, TCO, Width::Word), 5);
    bench.write(PM, TCO, Width::Word, 1);
    bench.pass(5);
    assert_eq!(bench.read(PM, TCO + 4, Width::Word), 0);
    bench.pass(2);
    assert_eq!(bench.read(PM, TCO + 4, Width::Word), 8, "TIMEOUT");
    bench.pass(7);
    assert_eq!(
        (bench.read(PM, TCO + 6, Width::Word), resets(&bench)),
        (2, 0),
        "NO_REBOOT"
    );
    bench.write(PM, TCO + 6, Width::Word, 2);
    assert_eq!(bench.read(PM, TCO + 6, Width::Word), 0);
    bench.write(CONFIG, 0x3410, Width::Dword, 0);
    bench.write(PM, TCO, Width::Word, 1);
    bench.pass(7);
    assert_eq!(resets(&bench), 0);
    bench.pass(7);
    assert_eq!(resets(&bench), 1);
}

#[test]
fn locked_watchdog_cannot_be_halted() {
    let mut bench = bench();
    bench.write(PM, TCO + 8, Width::Word, 0x1000);
    bench.write(PM, TCO + 8, Width::Word, 0x0800);
    assert_eq!(bench.read(PM, TCO + 8, Width::Word), 0x1000);
    bench.chip.reset(Reset::Warm);
    assert_eq!(bench.read(PM, TCO + 8, Width::Word), 0x0800);
}
