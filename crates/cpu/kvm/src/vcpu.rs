//! The run loop: what happens between two stays in the guest.
//!
//! The kernel decides when an interrupt may be delivered, the board which: where the guest cannot take one now, the kernel
//! is asked to come out as soon as it can. INIT, SIPI, HLT and shutdown are ours. A budget is carried out by single steps.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuState;
use cpu_model::EngineError;
use cpu_model::Msrs;
use cpu_model::PendingEvent;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use kvm_bindings::KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
use kvm_bindings::KVM_GUESTDBG_ENABLE;
use kvm_bindings::KVM_GUESTDBG_SINGLESTEP;
use kvm_bindings::KVM_VCPU_TSC_CTRL;
use kvm_bindings::KVM_VCPU_TSC_OFFSET;
use kvm_bindings::kvm_device_attr;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_guest_debug;
use kvm_bindings::kvm_interrupt;
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use x86_isa::cr0;
use x86_isa::flags;

use crate::cpuid;
use crate::engine::Shared;
use crate::engine::failed;
use crate::engine::host_error;
use crate::exits::Exit;
use crate::kick::Kicker;
use crate::rescue::StandIn;
use crate::state::Pointers;
use crate::time::Moment;
use crate::time::Tsc;
use crate::time::host_counter;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: u64 = 0x4004_ae86;
/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: u64 = 0x4018_aee1;
/// IA32_APIC_BASE after reset.
const APIC_BASE: u64 = 0xfee0_0800;

/// The TSC of a vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TscState {
    /// A state was taken over in which it was so far ahead of guest time; it counts from the next entry on.
    Loaded(u64),
    /// It counts.
    Running(Tsc),
}

/// A vCPU that the host's processor executes.
pub(crate) struct KvmVcpu {
    pub(crate) id: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) fd: VcpuFd,
    signals: Arc<Signals>,
    kicker: Arc<Kicker>,
    // State that the kernel does not have
    pub(crate) activity: Activity,
    /// An NMI has come that the halted processor cannot take.
    pub(crate) nmi: bool,
    /// Another vCPU has ended its HLT, which may be to come.
    pub(crate) unhalted: bool,
    /// MSRs that we answer, and those that the host does not have.
    pub(crate) kept: Msrs,
    pub(crate) tsc: TscState,
    pub(crate) pointers: Pointers,
    // Derived
    /// The board has signalled an interrupt that was not taken yet.
    interrupt: bool,
    /// What the kernel says of interrupts in `kvm_run` is about the present state.
    told: bool,
    /// The count that the TSC was set by; 0 is none.
    epoch: u64,
    /// IA32_APIC_BASE as the kernel has it.
    pub(crate) apic_base: u64,
    /// Single steps are on.
    stepping: bool,
    pub(crate) stand_in: Option<Box<StandIn>>,
    pub(crate) counters: Counters,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) entries: u64,
    pub(crate) pio: u64,
    pub(crate) mmio: u64,
    pub(crate) msrs: u64,
    pub(crate) windows: u64,
    pub(crate) halts: u64,
    pub(crate) interrupts: u64,
}

impl KvmVcpu {
    pub(crate) fn new(id: u32, shared: Arc<Shared>, signals: Arc<Signals>) -> Result<Self, EngineError> {
        let mut fd = shared.vm.create_vcpu(id.into()).map_err(failed("no vCPU"))?;
        let (hz, policy_hz) = (shared.time.tsc_hz, shared.policy.tsc_hz());
        let entries = cpuid::entries(&shared.policy, id, hz)?;
        fd.set_cpuid2(&entries).map_err(failed("CPUID"))?;
        // Of KVM's interface guests have what they are told of. Kernels that cannot do that give more.
        let _ = fd.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        });
        if hz == policy_hz {
            fd.set_tsc_khz((hz / 1000) as u32)
                .map_err(failed("the TSC's frequency"))?;
        }
        let kicker = Kicker::new(&mut fd);
        let mut vcpu = Self {
            id,
            fd,
            signals,
            kicker,
            activity: Activity::Active,
            nmi: false,
            unhalted: false,
            kept: Msrs::default(),
            tsc: TscState::Loaded(0),
            pointers: Pointers::default(),
            interrupt: false,
            told: false,
            epoch: 0,
            apic_base: APIC_BASE,
            stepping: false,
            stand_in: None,
            counters: Counters::default(),
            shared,
        };
        vcpu.load(&CpuState::after_reset(id == 0, vcpu.shared.policy.signature()))?;
        if let Some(value) = vcpu.shared.arch_capabilities {
            vcpu.put_msr(x86_isa::msr::ARCH_CAPABILITIES, value);
        }
        Ok(vcpu)
    }

    pub(crate) fn kvm_run(&mut self) -> &mut kvm_run {
        self.fd.get_kvm_run()
    }

    /// What the kernel said of interrupts is no longer true.
    pub(crate) fn forget_told(&mut self) {
        self.told = false;
        // The board is asked again.
        self.interrupt = true;
        self.epoch = 0;
    }

    fn run_loop(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError> {
        self.set_stepping(budget.is_some())?;
        let mut left = budget.unwrap_or(u64::MAX);
        loop {
            if let Some(stop) = self.between(board)? {
                return Ok(stop);
            }
            if left == 0 {
                return Ok(Stop::Budget);
            }
            if self.guest(board)? {
                left -= 1;
            }
        }
    }

    /// Takes what is pending. `Some` when `run` must come back.
    fn between(&mut self, board: &dyn CpuBoard) -> Result<Option<Stop>, EngineError> {
        self.take_signals(board)?;
        if self.signals.take(Signal::Kick) {
            return Ok(Some(Stop::Kicked));
        }
        match self.activity {
            Activity::Active => {}
            Activity::WaitSipi => return Ok(Some(Stop::Halted)),
            Activity::Shutdown => return Ok(Some(Stop::TripleFault)),
            Activity::Halted => {
                if !(std::mem::take(&mut self.unhalted) || self.wake_by_nmi()? || self.wake_by_interrupt(board)?) {
                    self.counters.halts += 1;
                    return Ok(Some(Stop::Halted));
                }
                self.activity = Activity::Active;
            }
        }
        if std::mem::take(&mut self.nmi) {
            self.fd.nmi().map_err(failed("no NMI"))?;
        }
        if self.interrupt && self.told && self.kvm_run().ready_for_interrupt_injection != 0 {
            self.take_interrupt(board)?;
        }
        let wanted = self.interrupt;
        self.kvm_run().request_interrupt_window = wanted.into();
        Ok(None)
    }

    fn take_signals(&mut self, board: &dyn CpuBoard) -> Result<(), EngineError> {
        let pending = self.signals.pending();
        let on = |signal: Signal| pending & signal as u32 != 0;
        if pending == 0 {
            return Ok(());
        }
        if on(Signal::Engine) {
            self.signals.take(Signal::Engine);
        }
        if on(Signal::Interrupt) && self.signals.take(Signal::Interrupt) {
            self.interrupt = true;
        }
        if on(Signal::Nmi) && self.signals.take(Signal::Nmi) {
            self.nmi = true;
        }
        if on(Signal::Unhalt) && self.signals.take(Signal::Unhalt) {
            self.unhalted = true;
        }
        if on(Signal::Init) && self.signals.take(Signal::Init) {
            self.complete(board)?;
            self.init()?;
        }
        if on(Signal::Sipi) && self.signals.take(Signal::Sipi) && self.activity == Activity::WaitSipi {
            let vector = u64::from(self.signals.sipi_vector());
            let mut state = self.save()?;
            state.segments[1].selector = (vector << 8) as u16;
            state.segments[1].base = vector << 12;
            state.rip = 0;
            state.activity = Activity::Active;
            self.load_here(&state)?;
        }
        Ok(())
    }

    /// Takes over a state of this vCPU's own, whose TSC goes on.
    pub(crate) fn load_here(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let (tsc, epoch) = (self.tsc, self.epoch);
        self.load(state)?;
        (self.tsc, self.epoch) = (tsc, epoch);
        Ok(())
    }

    /// INIT: as after reset, but for the state that survives (SDM vol. 3 table 9-1).
    fn init(&mut self) -> Result<(), EngineError> {
        let old = self.save()?;
        let mut state = CpuState::after_reset(self.id == 0, self.shared.policy.signature());
        state.cr0 |= old.cr0 & (cr0::CD | cr0::NW);
        state.fpu = old.fpu;
        state.xcr0 = old.xcr0;
        state.msrs = old.msrs;
        state.msrs.efer = 0;
        state.msrs.kvm_system_time = 0;
        state.msrs.kvm_steal_time = 0;
        state.pending = PendingEvent::default();
        self.load_here(&state)?;
        self.interrupt = false;
        self.nmi = false;
        Ok(())
    }

    fn wake_by_nmi(&mut self) -> Result<bool, EngineError> {
        if !self.nmi {
            return Ok(false);
        }
        let events = self.fd.get_vcpu_events().map_err(failed("no events"))?;
        Ok(events.nmi.masked == 0)
    }

    fn wake_by_interrupt(&mut self, board: &dyn CpuBoard) -> Result<bool, EngineError> {
        if !self.interrupt {
            return Ok(false);
        }
        let regs = self.fd.get_regs().map_err(failed("no registers"))?;
        Ok(regs.rflags & flags::IF != 0 && self.take_interrupt(board)?)
    }

    /// Hands the kernel the interrupt that the board has; true when there is one. The guest can take it now.
    fn take_interrupt(&mut self, board: &dyn CpuBoard) -> Result<bool, EngineError> {
        let Some(vector) = board.take_interrupt(self.id) else {
            self.interrupt = false;
            return Ok(false);
        };
        let interrupt = kvm_interrupt { irq: vector.into() };
        // SAFETY: the descriptor is a vCPU's, and the kernel reads a structure that lives.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            return Err(host_error(format!("no interrupt: {error}")));
        }
        self.counters.interrupts += 1;
        self.told = false;
        Ok(true)
    }

    /// One stay in the guest, and what it came out for. True when that was the end of a single step.
    fn guest(&mut self, board: &dyn CpuBoard) -> Result<bool, EngineError> {
        let Shared { vm, slots, .. } = &*self.shared;
        slots.follow(vm).map_err(host_error)?;
        let cr8 = u64::from(board.apic_cr8(self.id));
        self.kvm_run().cr8 = cr8;
        self.kicker.arm();
        if self.signals.pending() != 0 {
            self.kicker.disarm();
            return Ok(false);
        }
        self.counters.entries += 1;
        let result = self.fd.run().map(drop);
        self.kicker.disarm();
        self.told = true;
        let after = self.kvm_run().cr8;
        if after != cr8 {
            board.set_apic_cr8(self.id, after as u8);
        }
        match result {
            Ok(()) => self.exit(board).map(|exit| exit == Exit::Step),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(false),
            Err(error) => Err(host_error(format!("the guest cannot be entered: {error}"))),
        }
    }

    /// Ends the instruction that the guest was left in the middle of, so that registers are those of a boundary. It may
    /// have more to ask.
    fn complete(&mut self, board: &dyn CpuBoard) -> Result<(), EngineError> {
        if self.activity != Activity::Active {
            return Ok(());
        }
        loop {
            self.kicker.set_immediate(true);
            let result = self.fd.run().map(drop);
            self.kicker.set_immediate(false);
            match result {
                Ok(()) => {
                    self.told = true;
                    self.exit(board)?;
                    if self.activity != Activity::Active {
                        return Ok(());
                    }
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.told = true;
                    return Ok(());
                }
                Err(error) => return Err(host_error(format!("an instruction cannot be ended: {error}"))),
            }
        }
    }

    /// Tells the guest that this vCPU does not run: it sleeps here, of which the kernel does not know. The kernel takes it back,
    /// and flushes the TLB if another vCPU has left word, when the guest is entered again. Spec: KVM msr.rst
    /// (MSR_KVM_STEAL_TIME, `preempted`).
    fn tell_sleep(&self) {
        const ENABLE: u64 = 1;
        const WAS_PREEMPTED: u64 = 16;
        const PREEMPTED: u8 = 1;
        let place = self.kept.kvm_steal_time;
        if place & ENABLE != 0 {
            // The kernel has taken the place; where it is gone, nobody reads there.
            let _ = self
                .shared
                .memory()
                .swap_u8((place & !ENABLE) + WAS_PREEMPTED, PREEMPTED);
        }
    }

    pub(crate) fn is_stepping(&self) -> bool {
        self.stepping
    }

    fn set_stepping(&mut self, on: bool) -> Result<(), EngineError> {
        if self.stepping == on {
            return Ok(());
        }
        let control = if on {
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        } else {
            0
        };
        let debug = kvm_guest_debug {
            control,
            ..kvm_guest_debug::default()
        };
        self.fd.set_guest_debug(&debug).map_err(failed("no single steps"))?;
        self.stepping = on;
        Ok(())
    }

    /// Sets what depends on guest time and the board, before the guest is entered for the first time in this run.
    fn enter(&mut self, board: &dyn CpuBoard) -> Result<(), EngineError> {
        let base = board
            .apic_read_msr(self.id, x86_isa::msr::APIC_BASE)
            .unwrap_or(APIC_BASE);
        self.follow_apic_base(base)?;
        let (count, epoch) = self.shared.time.look(Moment::now(board));
        let tsc = match self.tsc {
            // Only now is it known at what time the state was taken over.
            TscState::Loaded(offset) => Tsc::new(&self.shared.time, count, offset),
            TscState::Running(mut tsc) => {
                tsc.follow(count);
                tsc
            }
        };
        self.tsc = TscState::Running(tsc);
        if self.epoch != epoch {
            self.set_tsc(&tsc)?;
            self.epoch = epoch;
            self.attend_clock(board);
        }
        Ok(())
    }

    /// Lets the kernel know of IA32_APIC_BASE: a bit of CPUID follows it.
    pub(crate) fn follow_apic_base(&mut self, base: u64) -> Result<(), EngineError> {
        if self.apic_base == base {
            return Ok(());
        }
        let mut sregs = self.fd.get_sregs().map_err(failed("no registers"))?;
        sregs.apic_base = base;
        self.fd.set_sregs(&sregs).map_err(failed("IA32_APIC_BASE"))?;
        self.apic_base = base;
        Ok(())
    }

    /// Makes the processor's TSC this one.
    fn set_tsc(&mut self, tsc: &Tsc) -> Result<(), EngineError> {
        self.shared.set_tsc_ahead(self.id, tsc.ahead());
        if !self.shared.time.settable {
            return Ok(());
        }
        // Ahead of the host's counter. Without scaling that is what the kernel keeps, too.
        let now = host_counter();
        let offset = tsc.at(now).wrapping_sub(now);
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw const offset) as u64,
            flags: 0,
        };
        let scaled = self.shared.time.tsc_hz == self.shared.policy.tsc_hz();
        // SAFETY: the descriptor is a vCPU's, and the kernel reads a structure that lives, and a number that it points to.
        let set = || unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) == 0 };
        if !scaled && set() {
            return Ok(());
        }
        // The kernel takes what is written within a second for one TSC that all vCPUs show.
        if self.put_msr(x86_isa::msr::TSC, tsc.at(host_counter())) {
            Ok(())
        } else {
            Err(host_error("the TSC cannot be set".to_owned()))
        }
    }

    /// What the TSC shows when the host's counter has this value. Zero before the guest is entered for the first time.
    pub(crate) fn tsc_at(&self, host: u64) -> u64 {
        match self.tsc {
            TscState::Running(tsc) => tsc.at(host),
            TscState::Loaded(_) => 0,
        }
    }

    /// IA32_TSC_DEADLINE as the guest has it, of the local APIC's.
    pub(crate) fn of_apic_deadline(&self, board: &dyn CpuBoard, deadline: u64) -> u64 {
        match self.tsc {
            TscState::Running(tsc) => tsc.of_apic_deadline(deadline, Moment::now(board)),
            TscState::Loaded(_) => deadline,
        }
    }

    /// IA32_TSC_DEADLINE as the local APIC has it, of the guest's.
    pub(crate) fn to_apic_deadline(&self, board: &dyn CpuBoard, deadline: u64) -> u64 {
        match self.tsc {
            TscState::Running(tsc) => tsc.to_apic(deadline, Moment::now(board)),
            TscState::Loaded(_) => deadline,
        }
    }

    /// The guest sets its TSC forward by so many ticks, where the kernel can show that.
    pub(crate) fn move_tsc(&mut self, board: &dyn CpuBoard, by: u64) -> Result<(), EngineError> {
        self.kept.tsc_adjust = self.kept.tsc_adjust.wrapping_add(by);
        self.shift_tsc(by)?;
        self.attend_clock(board);
        Ok(())
    }

    pub(crate) fn shift_tsc(&mut self, by: u64) -> Result<(), EngineError> {
        if let TscState::Running(tsc) = &mut self.tsc
            && self.shared.time.settable
        {
            tsc.shift(by);
            let tsc = *tsc;
            self.set_tsc(&tsc)?;
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError> {
        self.enter(board)?;
        self.signals.set_waker(Some(Arc::clone(&self.kicker) as _));
        let result = self.run_loop(board, budget);
        self.signals.set_waker(None);
        let stop = result?;
        self.complete(board)?;
        self.shared.time.look(Moment::now(board));
        if stop == Stop::Halted {
            self.tell_sleep();
        }
        Ok(stop)
    }

    fn state(&mut self) -> CpuState {
        // A signal that has arrived but was not looked at belongs to the state.
        self.nmi |= self.signals.take(Signal::Nmi);
        self.unhalted |= self.signals.take(Signal::Unhalt);
        // The kernel gives what it has to whoever holds the descriptor.
        match self.save() {
            Ok(state) => state,
            Err(error) => {
                tracing::error!(cpu = self.id, %error, "the kernel does not give the state of a vCPU");
                CpuState::default()
            }
        }
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let before = self.save()?;
        self.load(state).map_err(|error| {
            // As it was before.
            let _ = self.load(&before);
            EngineError::State(error.to_string())
        })
    }

    fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.signals)
    }
}

impl Inspect for KvmVcpu {
    fn inspect(&self) -> Node {
        let c = &self.counters;
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        let node = Node::tree()
            .with("rip", rip)
            .with("activity", format!("{:?}", self.activity))
            .with("entries", c.entries)
            .with("pio", c.pio)
            .with("mmio", c.mmio)
            .with("msrs", c.msrs)
            .with("interrupt_windows", c.windows)
            .with("interrupts", c.interrupts)
            .with("halts", c.halts);
        match &self.stand_in {
            Some(stand_in) => node.with("interpreted", stand_in.inspect()),
            None => node,
        }
    }
}
