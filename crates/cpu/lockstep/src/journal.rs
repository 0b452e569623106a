//! What one vCPU asked of the board, and what it was told, for another vCPU that asks the same.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use cpu_model::CpuBoard;
use cpu_model::MsrFault;
use device_model::VmTime;
use device_model::Width;

/// A call of the board, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    PioRead(u16, Width),
    PioWrite(u16, Width, u32),
    MmioRead(u64, Width),
    MmioWrite(u64, Width, u64),
    TakeInterrupt,
    ReadMsr(u32),
    WriteMsr(u32, u64),
    ReadCr8,
    WriteCr8(u8),
    Random,
    Now,
    BootDate,
    SendIpis(u32, u128, u32),
    Unhalt(u32),
    Stolen,
}

/// Calls and answers of one step.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: VecDeque<(Call, Option<u64>)>,
    differences: Vec<String>,
}

impl Journal {
    /// Ends a step: what was asked differently.
    pub(crate) fn end(&mut self) -> Vec<String> {
        self.skip_vain();
        let mut differences = std::mem::take(&mut self.differences);
        differences.extend(
            self.entries
                .drain(..)
                .map(|(call, _)| format!("not asked by the interpreter: {call:x?}")),
        );
        differences
    }

    /// Forgets questions for an interrupt that there was none of: one vCPU may be more curious than the other.
    fn skip_vain(&mut self) {
        while self.entries.front() == Some(&(Call::TakeInterrupt, None)) {
            self.entries.pop_front();
        }
    }

    fn answer(&mut self, call: Call) -> Option<u64> {
        if call == Call::TakeInterrupt && self.entries.front().is_none_or(|(next, _)| *next != call) {
            return None;
        }
        if call != Call::TakeInterrupt {
            self.skip_vain();
        }
        match self.entries.pop_front() {
            Some((recorded, answer)) if recorded == call => answer,
            Some((recorded, answer)) => {
                self.differences.push(format!("asked: {recorded:x?} {call:x?}"));
                answer
            }
            None => {
                self.differences
                    .push(format!("asked by the interpreter only: {call:x?}"));
                None
            }
        }
    }
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes calls on, and writes them down.
pub(crate) struct Recorder<'a> {
    board: &'a dyn CpuBoard,
    journal: &'a Mutex<Journal>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(board: &'a dyn CpuBoard, journal: &'a Mutex<Journal>) -> Self {
        Self { board, journal }
    }

    fn note(&self, call: Call, answer: Option<u64>) {
        lock(self.journal).entries.push_back((call, answer));
    }
}

impl CpuBoard for Recorder<'_> {
    fn pio_read(&self, cpu: u32, port: u16, width: Width) -> u32 {
        let value = self.board.pio_read(cpu, port, width);
        self.note(Call::PioRead(port, width), Some(value.into()));
        value
    }

    fn pio_write(&self, cpu: u32, port: u16, width: Width, value: u32) {
        self.board.pio_write(cpu, port, width, value);
        self.note(Call::PioWrite(port, width, value), None);
    }

    fn mmio_read(&self, cpu: u32, gpa: u64, width: Width) -> u64 {
        let value = self.board.mmio_read(cpu, gpa, width);
        self.note(Call::MmioRead(gpa, width), Some(value));
        value
    }

    fn mmio_write(&self, cpu: u32, gpa: u64, width: Width, value: u64) {
        self.board.mmio_write(cpu, gpa, width, value);
        self.note(Call::MmioWrite(gpa, width, value), None);
    }

    fn take_interrupt(&self, cpu: u32) -> Option<u8> {
        let vector = self.board.take_interrupt(cpu);
        self.note(Call::TakeInterrupt, vector.map(u64::from));
        vector
    }

    fn apic_read_msr(&self, cpu: u32, msr: u32) -> Result<u64, MsrFault> {
        let value = self.board.apic_read_msr(cpu, msr);
        self.note(Call::ReadMsr(msr), value.ok());
        value
    }

    fn apic_write_msr(&self, cpu: u32, msr: u32, value: u64) -> Result<(), MsrFault> {
        let result = self.board.apic_write_msr(cpu, msr, value);
        self.note(Call::WriteMsr(msr, value), result.ok().map(|()| 0));
        result
    }

    fn apic_cr8(&self, cpu: u32) -> u8 {
        let value = self.board.apic_cr8(cpu);
        self.note(Call::ReadCr8, Some(value.into()));
        value
    }

    fn set_apic_cr8(&self, cpu: u32, value: u8) {
        self.board.set_apic_cr8(cpu, value);
        self.note(Call::WriteCr8(value), None);
    }

    fn send_ipis(&self, cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
        let sent = self.board.send_ipis(cpu, first, set, icr);
        self.note(Call::SendIpis(first, set, icr), sent.map(u64::from));
        sent
    }

    fn unhalt(&self, apic_id: u32) {
        self.board.unhalt(apic_id);
        self.note(Call::Unhalt(apic_id), None);
    }

    fn stolen(&self, cpu: u32) -> Duration {
        let stolen = self.board.stolen(cpu);
        self.note(Call::Stolen, u64::try_from(stolen.as_nanos()).ok());
        stolen
    }

    fn random(&self) -> Option<u64> {
        let number = self.board.random();
        self.note(Call::Random, number);
        number
    }

    fn now(&self) -> VmTime {
        let now = self.board.now();
        self.note(Call::Now, Some(now.as_ns()));
        now
    }

    fn boot_date(&self) -> Duration {
        let date = self.board.boot_date();
        self.note(Call::BootDate, u64::try_from(date.as_nanos()).ok());
        date
    }
}

/// Tells what was written down.
pub(crate) struct Replayer<'a> {
    journal: &'a Mutex<Journal>,
}

impl<'a> Replayer<'a> {
    pub(crate) fn new(journal: &'a Mutex<Journal>) -> Self {
        Self { journal }
    }

    fn ask(&self, call: Call) -> Option<u64> {
        lock(self.journal).answer(call)
    }
}

impl CpuBoard for Replayer<'_> {
    fn pio_read(&self, _cpu: u32, port: u16, width: Width) -> u32 {
        self.ask(Call::PioRead(port, width)).unwrap_or(0) as u32
    }

    fn pio_write(&self, _cpu: u32, port: u16, width: Width, value: u32) {
        self.ask(Call::PioWrite(port, width, value));
    }

    fn mmio_read(&self, _cpu: u32, gpa: u64, width: Width) -> u64 {
        self.ask(Call::MmioRead(gpa, width)).unwrap_or(0)
    }

    fn mmio_write(&self, _cpu: u32, gpa: u64, width: Width, value: u64) {
        self.ask(Call::MmioWrite(gpa, width, value));
    }

    fn take_interrupt(&self, _cpu: u32) -> Option<u8> {
        self.ask(Call::TakeInterrupt).map(|v| v as u8)
    }

    fn apic_read_msr(&self, _cpu: u32, msr: u32) -> Result<u64, MsrFault> {
        self.ask(Call::ReadMsr(msr)).ok_or(MsrFault)
    }

    fn apic_write_msr(&self, _cpu: u32, msr: u32, value: u64) -> Result<(), MsrFault> {
        self.ask(Call::WriteMsr(msr, value)).map(|_| ()).ok_or(MsrFault)
    }

    fn apic_cr8(&self, _cpu: u32) -> u8 {
        self.ask(Call::ReadCr8).unwrap_or(0) as u8
    }

    fn set_apic_cr8(&self, _cpu: u32, value: u8) {
        self.ask(Call::WriteCr8(value));
    }

    fn send_ipis(&self, _cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
        self.ask(Call::SendIpis(first, set, icr)).map(|sent| sent as u32)
    }

    fn unhalt(&self, apic_id: u32) {
        self.ask(Call::Unhalt(apic_id));
    }

    fn stolen(&self, _cpu: u32) -> Duration {
        Duration::from_nanos(self.ask(Call::Stolen).unwrap_or(0))
    }

    fn random(&self) -> Option<u64> {
        self.ask(Call::Random)
    }

    fn now(&self) -> VmTime {
        VmTime::from_ns(self.ask(Call::Now).unwrap_or(0))
    }

    fn boot_date(&self) -> Duration {
        Duration::from_nanos(self.ask(Call::BootDate).unwrap_or(0))
    }
}
