//! KVM's hypercalls, answered by us: the kernel's own would reach only local APICs that the kernel keeps.
//!
//! A kernel that can run Xen's guests can be told to leave hypercalls to us. The register that such guests ask for their page
//! of hypercalls by must then be named; guests cannot write it, as the filter of MSRs has it. Where the kernel does not do
//! that, guests are not told of the features that take hypercalls.
//!
//! Spec: KVM api.rst (KVM_XEN_HVM_CONFIG, KVM_EXIT_XEN).

use std::os::fd::AsRawFd;

use cpu_model::CpuBoard;
use cpu_model::EngineError;
use cpu_model::Feature;
use cpu_model::Hypercall;
use kvm_bindings::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
use kvm_bindings::kvm_xen_hvm_config;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;
use kvm_ioctls::VmFd;

use crate::engine::failed;
use crate::vcpu::KvmVcpu;

/// `_IOW(KVMIO, 0x7a, struct kvm_xen_hvm_config)`.
const KVM_XEN_HVM_CONFIG: u64 = 0x4038_ae7a;
/// The register for Xen's page of hypercalls: one of those that the kernel allows, and no guest looks for here.
pub(crate) const XEN_PAGE: u32 = 0x4000_0200;

/// What guests do by hypercalls.
pub(crate) const FEATURES: [Feature; 3] = [Feature::KvmPvUnhalt, Feature::KvmPvSendIpi, Feature::KvmPvSchedYield];

/// Whether the kernel can leave hypercalls to us.
pub(crate) fn can_intercept(kvm: &Kvm) -> bool {
    kvm.check_extension_int(Cap::XenHvm) & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL as i32 != 0
}

/// Makes the guests of `vm` come out for hypercalls.
pub(crate) fn intercept(vm: &VmFd) -> Result<(), EngineError> {
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        msr: XEN_PAGE,
        ..kvm_xen_hvm_config::default()
    };
    // SAFETY: the descriptor is a machine's, and the kernel reads a structure that lives.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_XEN_HVM_CONFIG, &raw const config) };
    if result == 0 {
        return Ok(());
    }
    let error = kvm_ioctls::Error::last();
    Err(failed("hypercalls")(error))
}

impl KvmVcpu {
    /// Carries out the hypercall that the guest came out for.
    pub(crate) fn hypercall(&mut self, board: &dyn CpuBoard) -> Result<(), EngineError> {
        self.counters.hypercalls += 1;
        let regs = self.fd.get_regs().map_err(failed("no registers"))?;
        let cpu = self.id;
        let policy = &self.shared.policy;
        // SAFETY: the kernel says by the reason which member it has filled in.
        let xen = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.xen };
        // SAFETY: there is only this kind of exit without event channels; numbers of any value are some.
        let call = unsafe { &mut xen.u.hcall };
        let hypercall = Hypercall {
            cpu,
            cpl: call.cpl as u8,
            long: call.longmode != 0,
            number: regs.rax,
            arguments: [regs.rbx, regs.rcx, regs.rdx, regs.rsi],
        };
        call.result = hypercall.call(policy, board);
        Ok(())
    }
}
