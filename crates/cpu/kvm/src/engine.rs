//! The engine: what the vCPUs of one machine share.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineCaps;
use cpu_model::EngineError;
use cpu_model::Signals;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::GuestMemory;
use kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE;
use kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR;
use kvm_bindings::KVM_MSR_EXIT_REASON_FILTER;
use kvm_bindings::KVM_MSR_EXIT_REASON_INVAL;
use kvm_bindings::KVM_MSR_EXIT_REASON_UNKNOWN;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use x86_interp::InterpEngine;

use crate::availability;
use crate::cpuid::Supported;
use crate::memory::Slots;
use crate::msr;
use crate::time::Timeline;
use crate::vcpu::KvmVcpu;

/// Where KVM puts its own three pages on processors that cannot run real mode by themselves: below firmware's ROM, where
/// no board has anything.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// The host, or its kernel, refuses.
pub(crate) fn host_error(reason: String) -> EngineError {
    EngineError::Host { engine: "kvm", reason }
}

/// What a call of the kernel's interface said.
pub(crate) fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| host_error(format!("{what}: {error}"))
}

/// The part of `policy` that KVM can give to a guest on this host.
///
/// # Errors
/// [`EngineError::Host`] where KVM cannot be used.
pub fn supported_policy(policy: &CpuPolicy) -> Result<CpuPolicy, EngineError> {
    let kvm = availability::open().map_err(host_error)?;
    Ok(Supported::ask(&kvm)?.narrow(policy))
}

/// What the vCPUs share.
pub(crate) struct Shared {
    pub(crate) vm: VmFd,
    pub(crate) slots: Slots,
    pub(crate) policy: CpuPolicy,
    pub(crate) supported: Supported,
    pub(crate) time: Timeline,
    /// IA32_ARCH_CAPABILITIES, where the host has something to say there.
    pub(crate) arch_capabilities: Option<u64>,
    /// Executes what the kernel cannot; made when that happens for the first time.
    stand_in: Mutex<Option<Arc<InterpEngine>>>,
    /// How far each vCPU's TSC is ahead of the common count: `None` before its first entry.
    ahead: Mutex<Vec<Option<u64>>>,
}

impl Shared {
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        self.slots.memory()
    }

    /// The interpreter, for what the kernel cannot execute.
    pub(crate) fn stand_in(&self) -> Result<Arc<InterpEngine>, EngineError> {
        let mut engine = self.stand_in.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*engine {
            return Ok(Arc::clone(engine));
        }
        let made = InterpEngine::new(Arc::clone(self.memory()), Arc::new(self.policy.clone()))?;
        Ok(Arc::clone(engine.insert(Arc::new(made))))
    }

    fn ahead(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how far the TSC of `cpu` is ahead of the common count.
    pub(crate) fn set_tsc_ahead(&self, cpu: u32, ahead: u64) {
        let mut all = self.ahead();
        let cpu = cpu as usize;
        if all.len() <= cpu {
            all.resize(cpu + 1, None);
        }
        all[cpu] = Some(ahead);
    }

    /// Whether the TSCs of all vCPUs that run show the same.
    pub(crate) fn tscs_agree(&self) -> bool {
        let all = self.ahead();
        let mut known = all.iter().flatten();
        let first = known.next();
        known.all(|ahead| Some(ahead) == first)
    }
}

/// KVM as an engine.
pub struct KvmEngine {
    caps: EngineCaps,
    shared: Arc<Shared>,
}

impl KvmEngine {
    /// An engine for a machine with this memory and CPU model, of which guests get what this host can give: see
    /// [`supported_policy`].
    ///
    /// # Errors
    /// [`EngineError::Host`] where KVM cannot be used, or refuses the machine.
    pub fn new(memory: Arc<GuestMemory>, policy: &CpuPolicy) -> Result<Self, EngineError> {
        let kvm = availability::open().map_err(host_error)?;
        let supported = Supported::ask(&kvm)?;
        let policy = supported.narrow(policy);
        let vm = kvm.create_vm().map_err(failed("no machine"))?;
        // Refused where the processor needs no such pages.
        let _ = vm.set_tss_address(TSS_ADDRESS);
        let cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [
                u64::from(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER),
                0,
                0,
                0,
            ],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&cap).map_err(failed("MSRs"))?;
        msr::filter(&vm)?;
        // Where the kernel cannot do that, it ends programs of the guest with #UD by itself.
        let _ = vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        });
        let slots = Slots::new(memory, kvm.get_nr_memslots());
        slots.follow(&vm).map_err(host_error)?;
        let time = timeline(&kvm, &vm, &policy)?;
        let shared = Shared {
            arch_capabilities: arch_capabilities(&kvm).map(|host| host & policy.arch_capabilities()),
            vm,
            slots,
            policy,
            supported,
            time,
            stand_in: Mutex::default(),
            ahead: Mutex::default(),
        };
        let caps = EngineCaps {
            name: "kvm",
            exact_budget: false,
        };
        Ok(Self {
            caps,
            shared: Arc::new(shared),
        })
    }

    /// What the guest is told of its processor.
    #[must_use]
    pub fn policy(&self) -> &CpuPolicy {
        &self.shared.policy
    }

    /// Begins or ends the log of the pages that the guest writes.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the kernel refuses.
    pub fn log_writes(&self, on: bool) -> Result<(), EngineError> {
        let Shared { vm, slots, .. } = &*self.shared;
        slots.set_log(vm, on).map_err(host_error)
    }

    /// Addresses of the pages of RAM that the guest has written since the last call, in order.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the kernel refuses.
    pub fn written_pages(&self) -> Result<Vec<u64>, EngineError> {
        let Shared { vm, slots, .. } = &*self.shared;
        slots.take_written(vm).map_err(host_error)
    }
}

/// Frequencies of the host's counter and of the guest's: the latter is the policy's where the kernel can scale.
fn timeline(kvm: &Kvm, vm: &VmFd, policy: &CpuPolicy) -> Result<Timeline, EngineError> {
    // A vCPU knows, so one is made and thrown away with its machine.
    let probe = kvm.create_vm().map_err(failed("no machine"))?;
    let vcpu = probe.create_vcpu(0).map_err(failed("no vCPU"))?;
    let host_hz = u64::from(vcpu.get_tsc_khz().map_err(failed("the TSC's frequency"))?) * 1000;
    let scales = vm.check_extension(Cap::TscControl) && vcpu.set_tsc_khz((policy.tsc_hz() / 1000) as u32).is_ok();
    if host_hz == 0 {
        return Err(host_error("the kernel does not know the TSC's frequency".to_owned()));
    }
    let settable = tsc_is_settable(&vcpu);
    if !settable {
        tracing::info!("the kernel shows guests the host's TSC, whatever it is set to");
    }
    let tsc_hz = if scales { policy.tsc_hz() } else { host_hz };
    Ok(Timeline::new(host_hz, tsc_hz, policy.tsc_hz(), settable))
}

/// Whether a vCPU shows what its TSC was set to. Kernels that let guests read the processor's own counter take any value and
/// show none.
fn tsc_is_settable(vcpu: &VcpuFd) -> bool {
    // Far ahead of the host: days at any frequency.
    const AHEAD: u64 = 1 << 52;
    let entry = |data| kvm_msr_entry {
        index: x86_isa::msr::TSC,
        data,
        ..kvm_msr_entry::default()
    };
    let wanted = crate::time::host_counter().wrapping_add(AHEAD);
    let set = kvm_bindings::Msrs::from_entries(&[entry(wanted)]);
    let (Ok(set), Ok(mut shown)) = (set, kvm_bindings::Msrs::from_entries(&[entry(0)])) else {
        return false;
    };
    let read = vcpu.set_msrs(&set) == Ok(1) && vcpu.get_msrs(&mut shown) == Ok(1);
    let shown = shown.as_slice().first().map_or(0, |entry| entry.data);
    read && shown.wrapping_sub(wanted) < AHEAD / 2
}

/// IA32_ARCH_CAPABILITIES as the kernel would give it to guests.
fn arch_capabilities(kvm: &Kvm) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: x86_isa::msr::ARCH_CAPABILITIES,
        ..kvm_msr_entry::default()
    };
    let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).ok()?;
    let known = kvm.check_extension(Cap::GetMsrFeatures) && kvm.get_msrs(&mut msrs) == Ok(1);
    known.then(|| msrs.as_slice().first().map(|entry| entry.data))?
}

impl Engine for KvmEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(KvmVcpu::new(id, Arc::clone(&self.shared), signals)?))
    }
}

impl Inspect for KvmEngine {
    fn inspect(&self) -> Node {
        let Shared {
            slots, policy, time, ..
        } = &*self.shared;
        Node::tree()
            .with("name", self.caps.name)
            .with("memory_slots", slots.count() as u64)
            .with("tsc_hz", time.tsc_hz)
            .with("tsc_as_policy", time.tsc_hz == policy.tsc_hz())
            .with("tsc_settable", time.settable)
    }
}
