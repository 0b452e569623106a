//! Serial wires between the guest and the host.

use board::Backends;
use board::Outcome;
use board::serial_wire;
use device_model::Width;

use crate::fake::Next;
use crate::fake::build;
use crate::fake::small;

#[test]
fn guest_output_reaches_the_host_whole() {
    let (port, host) = serial_wire();
    let mut backends = Backends::default();
    backends.serial.insert("com1".to_owned(), port);
    let length = 200_000;
    let machine = build(&small(), backends, move |step| {
        if step.number == length {
            step.board.pio_write(0, 0x604, Width::Word, 0x3400);
            return Next::Go;
        }
        while step.input(0x3fd) & 0x20 == 0 {
            std::thread::yield_now();
        }
        step.out(0x3f8, (step.number % 251) as u8);
        Next::Go
    });
    let reader = std::thread::spawn(move || {
        let mut out = Vec::new();
        while host.read(&mut out) {}
        out
    });
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::PowerOff);
    let out = reader.join().unwrap();
    assert_eq!(out.len(), length as usize);
    assert!(out.iter().zip(0..length).all(|(byte, i)| u64::from(*byte) == i % 251));
}

#[test]
fn bytes_in_the_fifo_of_a_blocked_port_are_sent_when_the_machine_ends() {
    let (port, host) = serial_wire();
    let mut backends = Backends::default();
    backends.serial.insert("com1".to_owned(), port);
    let machine = build(&small(), backends, |step| {
        if step.number == 0 {
            step.out(0x3fa, 1);
        }
        // Nobody reads, so the transmitter comes to a standstill; then a FIFO full of bytes is added.
        if step.input(0x3fd) & 0x20 != 0 {
            step.out(0x3f8, b'.');
            return Next::Go;
        }
        for byte in b"the last words!" {
            step.out(0x3f8, *byte);
        }
        step.board.pio_write(0, 0x604, Width::Word, 0x3400);
        Next::Go
    });
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::PowerOff);
    let mut out = Vec::new();
    while host.read(&mut out) {}
    assert!(out.ends_with(b".the last words!"));
}

#[test]
fn host_input_interrupts_a_halted_guest_and_arrives_whole() {
    let (port, host) = serial_wire();
    let mut backends = Backends::default();
    backends.serial.insert("com1".to_owned(), port);
    let machine = build(&small(), backends, |step| {
        if step.number == 0 {
            // 8259 with only IRQ 4 open; the UART with FIFOs, OUT2 and the receive interrupt.
            for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, !0x10)] {
                step.out(port, value);
            }
            for (port, value) in [(0x3fa, 0x81), (0x3fc, 8), (0x3f9, 1)] {
                step.out(port, value);
            }
        }
        while step.board.take_interrupt(0).is_some() {
            while step.input(0x3fd) & 1 != 0 {
                let byte = step.input(0x3f8);
                step.out(0x3f8, byte);
            }
            step.out(0x20, 0x20);
        }
        Next::Halt
    });
    machine.start().unwrap();
    let sent: Vec<u8> = (0..5000).map(|i| (i % 253) as u8).collect();
    assert!(host.write(&sent));
    let mut echoed = Vec::new();
    while echoed.len() < sent.len() {
        assert!(host.read(&mut echoed));
    }
    assert_eq!(echoed, sent);
}
