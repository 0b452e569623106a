//! Run states, the ends of a machine, resets, interrupts from device to processor.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use board::Backends;
use board::Machine;
use board::MachineEvent;
use board::Outcome;
use board::RunState;
use board::StateError;
use cpu_model::Signal;
use device_model::Node;
use device_model::Width;
use spec::DebugExitConfig;
use spec::OnReset;
use spec::OnTripleFault;

use crate::fake::Next;
use crate::fake::Step;
use crate::fake::build;
use crate::fake::idle;
use crate::fake::small;

/// PM1_CNT with SLP_TYP 5 and SLP_EN.
const S5: u32 = 5 << 10 | 1 << 13;

fn power_off(step: &Step<'_>) -> Next {
    step.board.pio_write(step.cpu, 0x604, Width::Word, S5);
    Next::Go
}

fn run(machine: &Machine) -> Outcome {
    machine.start().unwrap();
    machine.wait()
}

#[test]
fn power_off_ends_the_machine_after_few_steps() {
    let steps = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&steps);
    let machine = build(&small(), Backends::default(), move |step| {
        count.store(step.number, Ordering::Relaxed);
        power_off(step)
    });
    assert_eq!(run(&machine), Outcome::PowerOff);
    assert_eq!(machine.state(), RunState::Stopped);
    assert_eq!(
        steps.load(Ordering::Relaxed),
        0,
        "nothing runs after the instruction that asked"
    );
}

#[test]
fn debug_exit_reports_the_value() {
    let mut spec = small();
    spec.devices.debug_exit = Some(DebugExitConfig { port: 0xf4 });
    let machine = build(&spec, Backends::default(), |step| {
        step.board.pio_write(0, 0xf4, Width::Dword, 0x21);
        Next::Go
    });
    assert_eq!(run(&machine), Outcome::DebugExit(0x21));
}

#[test]
fn reset_ends_the_machine_when_the_spec_says_so() {
    let mut spec = small();
    spec.on_reset = OnReset::Stop;
    for (port, value) in [(0xcf9, 6), (0x64, 0xfe), (0x92, 3)] {
        let machine = build(&spec, Backends::default(), move |step| {
            step.out(0xcf9, 2);
            step.out(port, value);
            Next::Go
        });
        assert_eq!(run(&machine), Outcome::Reset, "port {port:#x}");
    }
}

#[test]
fn reset_starts_again_with_devices_and_processors_as_new() {
    let boots = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&boots);
    let machine = build(&small(), Backends::default(), move |step| {
        assert_eq!(step.number, 0);
        assert_eq!(step.input(0x3fc), 0, "the modem control register was reset");
        step.out(0x3fc, 0x0b);
        if count.fetch_add(1, Ordering::Relaxed) == 2 {
            return power_off(step);
        }
        step.out(0xcf9, 6);
        Next::Go
    });
    assert_eq!(run(&machine), Outcome::PowerOff);
    assert_eq!(boots.load(Ordering::Relaxed), 3);
}

#[test]
fn triple_fault_is_reported_with_its_place() {
    let machine = build(&small(), Backends::default(), |step| match step.number {
        0..5 => Next::Go,
        _ => Next::Die,
    });
    let Outcome::TripleFault(fault) = run(&machine) else {
        panic!("not a triple fault");
    };
    assert_eq!((fault.cpu, fault.rip), (0, 6));
    assert_eq!(
        fault.to_string(),
        "triple fault on cpu 0: RIP 0x6, CR3 0x0, last exception #UD at 0x1234"
    );
}

#[test]
fn triple_fault_resets_when_the_spec_says_so() {
    let mut spec = small();
    spec.on_triple_fault = OnTripleFault::Reset;
    let boots = Arc::new(AtomicU64::new(0));
    let machine = build(&spec, Backends::default(), move |step| {
        if boots.fetch_add(1, Ordering::Relaxed) == 1 {
            return power_off(step);
        }
        Next::Die
    });
    assert_eq!(run(&machine), Outcome::PowerOff);
}

#[test]
fn paused_machine_executes_nothing_and_its_time_stands() {
    let steps = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&steps);
    let machine = build(&small(), Backends::default(), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
        Next::Go
    });
    machine.start().unwrap();
    while steps.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    let (before, time) = (steps.load(Ordering::Relaxed), machine.save().unwrap().time);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(steps.load(Ordering::Relaxed), before);
    assert_eq!(machine.save().unwrap().time, time);
    machine.resume().unwrap();
    while steps.load(Ordering::Relaxed) == before {
        std::thread::yield_now();
    }
    machine.stop().unwrap();
    assert_eq!(machine.wait(), Outcome::Stopped);
}

#[test]
fn watchers_are_told_of_every_change_and_of_the_end() {
    let machine = build(&small(), Backends::default(), |_| {
        std::thread::yield_now();
        Next::Go
    });
    let (told, events) = mpsc::channel();
    machine.watch(Box::new(move |event| drop(told.send(event.clone()))));
    machine.start().unwrap();
    machine.pause().unwrap();
    machine.pause().unwrap();
    // Those that only hold the machine for a moment change nothing.
    machine.inspect().unwrap();
    machine.resume().unwrap();
    machine.inspect().unwrap();
    machine.reset().unwrap();
    machine.stop().unwrap();
    drop(machine);
    let state = MachineEvent::State;
    let expected = [
        state(RunState::Running),
        state(RunState::Paused),
        state(RunState::Running),
        MachineEvent::Reset { by_guest: false },
        state(RunState::Stopped),
        MachineEvent::Ended(Outcome::Stopped),
    ];
    assert_eq!(events.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn transitions_that_do_not_exist_are_refused() {
    let machine = idle(&small());
    let refused = |result: Result<(), StateError>| assert!(matches!(result, Err(StateError::Transition { .. })));
    assert_eq!(machine.state(), RunState::Created);
    refused(machine.pause());
    refused(machine.resume());
    refused(machine.reset());
    machine.start().unwrap();
    refused(machine.start());
    refused(machine.save().map(drop));
    machine.pause().unwrap();
    machine.pause().unwrap();
    assert_eq!(machine.state(), RunState::Paused);
    machine.reset().unwrap();
    assert_eq!(machine.state(), RunState::Paused);
    machine.stop().unwrap();
    refused(machine.resume());
    refused(machine.save().map(drop));
}

#[test]
fn inspect_reaches_devices_and_processors_of_a_running_machine() {
    let machine = idle(&small());
    machine.start().unwrap();
    let tree = machine.inspect().unwrap();
    assert!(tree.at("microvm/devices/com1").is_some());
    assert_eq!(
        tree.at("microvm/cpus/cpu0/last_exception"),
        Some(&Node::Text("#UD at 0x1234".to_owned()))
    );
    assert_eq!(machine.state(), RunState::Running);
}

/// Sets the 8259 pair to vectors 20h and 28h with only `mask` masked.
fn set_up_pic(step: &Step<'_>, mask: u8) {
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, mask)] {
        step.out(port, value);
    }
}

#[test]
fn pit_reaches_the_processor_through_the_8259_in_virtual_wire_mode() {
    let (vectors, taken) = mpsc::channel();
    let machine = build(&small(), Backends::default(), move |step| {
        if step.number == 0 {
            set_up_pic(step, !1);
            // Counter 0, mode 2, every 1193 ticks: a millisecond.
            for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
                step.out(port, value);
            }
        }
        while let Some(vector) = step.board.take_interrupt(0) {
            let _ = vectors.send(vector);
            step.out(0x20, 0x20);
        }
        Next::Halt
    });
    machine.start().unwrap();
    for _ in 0..5 {
        assert_eq!(taken.recv().unwrap(), 0x20);
    }
}

/// Writes a register of the I/O APIC.
fn ioapic(step: &Step<'_>, index: u64, value: u64) {
    step.board.mmio_write(step.cpu, 0xfec0_0000, Width::Dword, index);
    step.board.mmio_write(step.cpu, 0xfec0_0010, Width::Dword, value);
}

#[test]
fn pit_reaches_the_processor_through_pin_2_of_the_io_apic() {
    let (vectors, taken) = mpsc::channel();
    let machine = build(&small(), Backends::default(), move |step| {
        if step.number == 0 {
            step.out(0x21, 0xff);
            step.board.mmio_write(0, 0xfee0_00f0, Width::Dword, 0x1ff);
            ioapic(step, 0x10 + 2 * 2 + 1, 0);
            ioapic(step, 0x10 + 2 * 2, 0x51);
            for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
                step.out(port, value);
            }
        }
        while let Some(vector) = step.board.take_interrupt(0) {
            let _ = vectors.send(vector);
            step.board.mmio_write(0, 0xfee0_00b0, Width::Dword, 0);
        }
        Next::Halt
    });
    machine.start().unwrap();
    for _ in 0..5 {
        assert_eq!(taken.recv().unwrap(), 0x51);
    }
}

#[test]
fn processors_start_each_other_and_send_interrupts() {
    let mut spec = small();
    spec.cpus = 3;
    let (vectors, taken) = mpsc::channel();
    let icr = |step: &Step<'_>, high: u64, low: u64| {
        step.board.mmio_write(step.cpu, 0xfee0_0310, Width::Dword, high << 24);
        step.board.mmio_write(step.cpu, 0xfee0_0300, Width::Dword, low);
    };
    let machine = build(&spec, Backends::default(), move |step| {
        match (step.cpu, step.number) {
            // The firmware left the timer ticking: mask it, then SIPI to all but self.
            (0, 0) => {
                step.out(0x21, 0xff);
                icr(step, 0, 0xc_4608);
            }
            (1 | 2, 0) => {
                assert_eq!(step.signals.sipi_vector(), 8);
                step.board.mmio_write(step.cpu, 0xfee0_00f0, Width::Dword, 0x1ff);
                // A fixed interrupt to the boot processor.
                icr(step, 0, 0x40 + u64::from(step.cpu));
            }
            _ => {}
        }
        while let Some(vector) = step.board.take_interrupt(step.cpu) {
            let _ = vectors.send((step.cpu, vector));
            step.board.mmio_write(step.cpu, 0xfee0_00b0, Width::Dword, 0);
        }
        Next::Halt
    });
    machine.start().unwrap();
    let mut got = [taken.recv().unwrap(), taken.recv().unwrap()];
    got.sort_unstable();
    assert_eq!(got, [(0, 0x41), (0, 0x42)]);
}

#[test]
fn lapic_page_is_each_processors_own_and_moves_with_its_base() {
    let mut spec = small();
    spec.cpus = 2;
    let (ids, read) = mpsc::channel();
    let machine = build(&spec, Backends::default(), move |step| {
        let id = |base: u64| step.board.mmio_read(step.cpu, base + 0x20, Width::Dword) >> 24;
        if step.number == 0 {
            let moved = 0xfef0_0000;
            let _ = ids.send(id(0xfee0_0000));
            step.board.apic_write_msr(step.cpu, 0x1b, moved | 0x900).unwrap();
            let _ = ids.send(id(moved));
            let _ = ids.send(id(0xfee0_0000));
        }
        Next::Halt
    });
    machine.start().unwrap();
    assert_eq!([read.recv(), read.recv(), read.recv()], [Ok(0), Ok(0), Ok(0xff)]);
}

#[test]
fn signals_of_the_old_guest_are_gone_after_a_reset() {
    let boots = AtomicU64::new(0);
    let machine = build(&small(), Backends::default(), move |step| {
        if boots.fetch_add(1, Ordering::Relaxed) == 0 {
            step.signals.raise(Signal::Nmi);
            step.out(0xcf9, 6);
            return Next::Go;
        }
        if step.signals.pending() & Signal::Nmi as u32 != 0 {
            return Next::Die;
        }
        power_off(step)
    });
    assert_eq!(run(&machine), Outcome::PowerOff);
}

/// A machine whose clock starts at `base` and whose processor tells the date of power-on.
fn dated(base: i64) -> (Machine, mpsc::Receiver<Duration>) {
    let (dates, told) = mpsc::channel();
    let mut spec = small();
    spec.devices.rtc.base = Some(base);
    let machine = build(&spec, Backends::default(), move |step| {
        let _ = dates.send(step.board.boot_date());
        Next::Halt
    });
    (machine, told)
}

#[test]
fn date_of_power_on_is_the_rtcs_and_moves_with_a_saved_state() {
    let (first, told) = dated(1_000_000_000);
    let saved = first.save().unwrap();
    first.start().unwrap();
    assert_eq!(told.recv(), Ok(Duration::from_secs(1_000_000_000)));
    let (second, told) = dated(1_500_000_000);
    second.restore(saved).unwrap();
    second.start().unwrap();
    assert_eq!(told.recv(), Ok(Duration::from_secs(1_000_000_000)));
}
