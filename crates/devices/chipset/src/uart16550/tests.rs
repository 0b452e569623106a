//! Tests of the 16550A against its data sheet and its drivers' probes.
//!
//! The far end is a probe with a queue each way and a limit on what it takes.
//!
//! Spec: National Semiconductor PC16550D (1995) §8.

use std::sync::Mutex;

use device_model::TestClock;
use proptest::prelude::*;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;

#[derive(Default)]
struct Line {
    sent: Vec<u8>,
    to_guest: VecDeque<u8>,
    full: bool,
}

#[derive(Clone, Default)]
struct LineProbe(Arc<Mutex<Line>>);

impl SerialBackend for LineProbe {
    fn send(&mut self, byte: u8) -> bool {
        let mut line = self.0.lock().unwrap();
        if !line.full {
            line.sent.push(byte);
        }
        !line.full
    }

    fn receive(&mut self) -> Option<u8> {
        self.0.lock().unwrap().to_guest.pop_front()
    }
}

struct Bench {
    uart: Uart16550,
    clock: TestClock,
    irq: IrqLine,
    line: LineProbe,
}

impl Bench {
    fn new() -> Self {
        let (clock, irq, line) = (TestClock::new(), IrqLine::detached(), LineProbe::default());
        let uart = Uart16550::new(Arc::new(clock.clone()), irq.clone(), Box::new(line.clone()));
        Self { uart, clock, irq, line }
    }

    /// 115200 8N1, FIFOs with trigger 14, OUT2 set, receive interrupt enabled.
    fn listening() -> Self {
        let mut b = Self::new();
        b.out(spec::LCR, 0x03);
        b.out(spec::IIR_FCR, 0xC1);
        b.out(spec::MCR, 0x08);
        b.out(spec::IER, 0x01);
        b
    }

    fn out(&mut self, offset: u64, value: u8) {
        self.uart
            .write(At { region: 0, offset }, Width::Byte, u64::from(value))
            .unwrap();
        self.poll();
    }

    fn inp(&mut self, offset: u64) -> u8 {
        lanes::byte(self.uart.read(At { region: 0, offset }, Width::Byte).unwrap())
    }

    fn poll(&mut self) -> Option<VmTime> {
        self.uart.poll(self.clock.now())
    }

    fn arrive(&mut self, bytes: &[u8]) -> Option<VmTime> {
        self.line.0.lock().unwrap().to_guest.extend(bytes);
        self.poll()
    }

    fn sent(&self) -> Vec<u8> {
        std::mem::take(&mut self.line.0.lock().unwrap().sent)
    }
}

#[test]
fn linux_probe_finds_a_16550a() {
    let mut b = Bench::new();
    b.out(spec::IER, 0xFF);
    assert_eq!(b.inp(spec::IER), 0x0F);
    b.out(spec::IER, 0);
    b.out(spec::MCR, 0x1A);
    assert_eq!(b.inp(spec::MSR) & 0xF0, 0x90);
    b.out(spec::MCR, 0);
    assert_eq!(b.inp(spec::IIR_FCR), 0x01);
    b.out(spec::IIR_FCR, 0x01);
    assert_eq!(b.inp(spec::IIR_FCR), 0xC1);
    b.out(spec::SCR, 0x5A);
    assert_eq!(b.inp(spec::SCR), 0x5A);
}

#[test]
fn dlab_selects_the_divisor() {
    let mut b = Bench::new();
    b.out(spec::LCR, 0x83);
    b.out(spec::DATA, 0x34);
    b.out(spec::IER, 0x12);
    assert_eq!((b.inp(spec::DATA), b.inp(spec::IER)), (0x34, 0x12));
    b.out(spec::LCR, 0x03);
    assert_eq!((b.inp(spec::DATA), b.inp(spec::IER)), (0, 0));
    assert!(b.sent().is_empty());
}

#[test]
fn thre_interrupt_rises_on_enable_falls_on_iir_read_and_rises_per_character() {
    let mut b = Bench::new();
    b.out(spec::MCR, 0x08);
    b.out(spec::IER, 0x02);
    assert!(b.irq.level());
    assert_eq!(b.inp(spec::IIR_FCR), 0x02);
    assert!(!b.irq.level());
    assert_eq!(b.inp(spec::IIR_FCR), 0x01);
    b.out(spec::DATA, b'x');
    assert!(b.irq.level());
    assert_eq!(b.sent(), b"x");
    assert_eq!(b.inp(spec::IIR_FCR), 0x02);
    // Re-arming by IER.
    b.out(spec::IER, 0x00);
    b.out(spec::IER, 0x02);
    assert!(b.irq.level());
}

#[test]
fn out2_gates_the_interrupt() {
    let mut b = Bench::new();
    b.out(spec::IER, 0x02);
    assert!(!b.irq.level());
    b.out(spec::MCR, 0x08);
    assert!(b.irq.level());
}

#[test]
fn full_backend_holds_thre_and_is_retried() {
    let mut b = Bench::new();
    b.out(spec::IIR_FCR, 0x01);
    b.line.0.lock().unwrap().full = true;
    for byte in 0..20 {
        b.out(spec::DATA, byte);
    }
    assert_eq!(b.inp(spec::LSR) & 0x60, 0);
    assert_eq!(b.poll(), Some(VmTime::from_ns(RETRY_NS)));
    b.line.0.lock().unwrap().full = false;
    assert_eq!(b.poll(), None);
    assert_eq!(b.sent(), (0..16).collect::<Vec<_>>());
    assert_eq!(b.inp(spec::LSR) & 0x60, 0x60);
}

#[test]
fn trigger_level_raises_received_data() {
    let mut b = Bench::listening();
    b.arrive(&[1; 13]);
    assert!(!b.irq.level());
    b.arrive(&[2]);
    assert_eq!(b.inp(spec::IIR_FCR), 0xC4);
    assert!(b.irq.level());
    assert_eq!(b.inp(spec::DATA), 1);
    assert!(!b.irq.level());
}

#[test]
fn few_characters_time_out_after_four_character_times() {
    let mut b = Bench::listening();
    let due = b.arrive(b"hi").unwrap();
    // 40 bits at 115200 bit/s.
    assert_eq!(due.as_ns(), 347_222);
    b.clock.set(due);
    assert_eq!(b.poll(), None);
    assert!(b.irq.level());
    assert_eq!(b.inp(spec::IIR_FCR), 0xCC);
    assert_eq!(b.inp(spec::DATA), b'h');
    // No poll is to come, so that the rest is announced at once.
    assert_eq!(b.inp(spec::IIR_FCR), 0xCC);
    assert_eq!(b.inp(spec::DATA), b'i');
    assert!(!b.irq.level());
    assert_eq!(b.inp(spec::LSR), 0x60);
}

#[test]
fn draining_the_fifo_brings_in_the_rest_with_a_new_edge() {
    let mut b = Bench::listening();
    let bytes: Vec<u8> = (0..40).collect();
    b.arrive(&bytes);
    let mut got = Vec::new();
    while b.inp(spec::LSR) & 1 != 0 {
        got.push(b.inp(spec::DATA));
    }
    assert_eq!(got, bytes);
    assert!(!b.irq.level());
}

#[test]
fn a_tail_that_the_guest_leaves_is_announced_later() {
    let mut b = Bench::listening();
    let due = b.arrive(&[7; 16]).unwrap();
    b.clock.advance(1000);
    for _ in 0..14 {
        b.inp(spec::DATA);
    }
    assert!(!b.irq.level());
    b.clock.set(due);
    let later = b.poll().unwrap();
    assert_eq!(later - due, 1000);
    b.clock.set(later);
    b.poll();
    assert_eq!(b.inp(spec::IIR_FCR), 0xCC);
}

#[test]
fn input_waits_until_the_guest_listens() {
    let mut b = Bench::new();
    b.arrive(b"early");
    // A driver's start: FIFOs are cleared, every status register is read.
    for fcr in [0x01, 0x07, 0x00] {
        b.out(spec::IIR_FCR, fcr);
    }
    for offset in [spec::LSR, spec::DATA, spec::IIR_FCR, spec::MSR] {
        b.inp(offset);
    }
    b.out(spec::IIR_FCR, 0xC1);
    b.out(spec::IER, 0x05);
    let got: Vec<u8> = std::iter::from_fn(|| (b.inp(spec::LSR) & 1 != 0).then(|| b.inp(spec::DATA))).collect();
    assert_eq!(got, b"early");
}

#[test]
fn polling_guest_receives_without_interrupts() {
    let mut b = Bench::new();
    b.arrive(b"ab");
    assert_eq!(b.inp(spec::LSR) & 1, 0);
    assert_eq!(b.inp(spec::LSR) & 1, 1);
    assert_eq!(b.inp(spec::DATA), b'a');
}

#[test]
fn loopback_returns_data_and_modem_lines_and_hides_the_backend() {
    let mut b = Bench::listening();
    b.out(spec::LCR, 0x02);
    b.out(spec::MCR, 0x1F);
    b.inp(spec::MSR);
    b.arrive(b"outside");
    b.out(spec::DATA, 0xFF);
    assert_eq!(b.inp(spec::LSR) & 1, 1);
    assert_eq!(b.inp(spec::DATA), 0x7F);
    assert_eq!(b.inp(spec::LSR) & 1, 0);
    assert!(b.sent().is_empty());
    assert_eq!(b.inp(spec::MSR), 0xF0);
    b.out(spec::MCR, 0x10);
    assert_eq!(b.inp(spec::MSR), 0x0F);
    assert_eq!(b.inp(spec::MSR), 0x00);
}

#[test]
fn modem_change_interrupts_until_msr_is_read() {
    let mut b = Bench::new();
    b.out(spec::IER, 0x08);
    b.out(spec::MCR, 0x18);
    assert_eq!(b.inp(spec::IIR_FCR), 0x00);
    assert!(b.irq.level());
    b.inp(spec::MSR);
    assert!(!b.irq.level());
}

#[test]
fn overrun_replaces_without_fifos_and_loses_with_them() {
    let mut b = Bench::new();
    b.out(spec::LCR, 0x03);
    b.out(spec::IER, 0x04);
    b.out(spec::MCR, 0x18);
    b.inp(spec::MSR);
    b.out(spec::DATA, 1);
    b.out(spec::DATA, 2);
    assert_eq!(b.inp(spec::IIR_FCR), 0x06);
    assert_eq!(b.inp(spec::LSR), 0x63);
    assert_eq!(b.inp(spec::LSR), 0x61);
    assert_eq!(b.inp(spec::DATA), 2);
    b.out(spec::IIR_FCR, 0x01);
    for byte in 0..17 {
        b.out(spec::DATA, byte);
    }
    assert_eq!(b.inp(spec::LSR), 0x63);
    let got: Vec<u8> = (0..16).map(|_| b.inp(spec::DATA)).collect();
    assert_eq!(got, (0..16).collect::<Vec<_>>());
    assert_eq!(b.inp(spec::LSR), 0x60);
}

#[test]
fn break_shows_when_it_reaches_the_top() {
    let mut b = Bench::listening();
    b.out(spec::IER, 0x05);
    b.arrive(b"a");
    b.uart.receive_break();
    assert_eq!(b.inp(spec::LSR), 0xE1);
    assert_eq!(b.inp(spec::DATA), b'a');
    assert_eq!(b.inp(spec::IIR_FCR), 0xC6);
    assert_eq!(b.inp(spec::LSR), 0xF9);
    assert_eq!(b.inp(spec::LSR), 0x61);
    assert_eq!(b.inp(spec::DATA), 0);
    assert_eq!(b.inp(spec::LSR), 0x60);
}

#[test]
fn fcr_clears_fifos() {
    let mut b = Bench::listening();
    b.arrive(&[1; 14]);
    assert!(b.irq.level());
    b.out(spec::IIR_FCR, 0xC3);
    assert!(!b.irq.level());
    assert_eq!(b.inp(spec::LSR), 0x60);
    b.arrive(&[1; 14]);
    b.out(spec::IIR_FCR, 0x00);
    assert_eq!(b.inp(spec::IIR_FCR), 0x01);
    assert_eq!(b.inp(spec::LSR), 0x60);
}

#[test]
fn restored_port_continues_where_it_was() {
    let mut b = Bench::listening();
    let due = b.arrive(b"xy");
    let mut c = Bench::new();
    c.uart.restore(b.uart.save()).unwrap();
    assert_eq!(c.poll(), due);
    assert_eq!(c.inp(spec::DATA), b'x');
    let mut state = b.uart.save();
    state.rx = vec![Received { byte: 0, errors: 0 }; 17];
    assert!(c.uart.restore(state).is_err());
}

fn boxed(clock: &TestClock) -> Box<Uart16550> {
    let line = LineProbe::default();
    line.0.lock().unwrap().to_guest.extend(0..200);
    Box::new(Uart16550::new(
        Arc::new(clock.clone()),
        IrqLine::detached(),
        Box::new(line),
    ))
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || boxed(&clock));
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
        let clock = TestClock::new();
        fuzz_registers(&mut *boxed(&clock), &clock, &bytes);
    }

    #[test]
    fn every_byte_arrives_once_and_in_order(
        chunks in proptest::collection::vec((0usize..40, 0usize..40, 0u64..1_000_000), 0..40),
        fcr in any::<u8>(),
    ) {
        let mut b = Bench::listening();
        b.out(spec::IIR_FCR, fcr & 0xC0 | 1);
        let (mut next, mut expected) = (0u8, Vec::new());
        let mut got = Vec::new();
        for (arrive, read, wait) in chunks {
            let chunk: Vec<u8> = (0..arrive).map(|i| next.wrapping_add(u8::try_from(i).unwrap())).collect();
            next = next.wrapping_add(u8::try_from(arrive).unwrap());
            expected.extend(&chunk);
            b.arrive(&chunk);
            for _ in 0..read {
                if b.inp(spec::LSR) & 1 != 0 {
                    got.push(b.inp(spec::DATA));
                }
            }
            let now = b.clock.advance(wait);
            b.uart.poll(now);
            // Whoever waits is announced, now or at a deadline.
            prop_assert!(b.uart.rx.is_empty() || b.irq.level() || b.uart.armed.is_some());
        }
        while b.inp(spec::LSR) & 1 != 0 {
            got.push(b.inp(spec::DATA));
        }
        prop_assert_eq!(got, expected);
    }
}
