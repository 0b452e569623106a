//! Plans: the golden one, and everything that keeps a spec from having one.

use std::path::Path;

use board::plan;
use spec::DebugExitConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::SerialConfig;
use spec::Size;

use crate::fake::everything;

/// The plans of machines, against the golden file of that name.
fn plans_are_as_golden(specs: &[MachineSpec], name: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let plans: Vec<_> = specs.iter().map(|spec| plan(spec).unwrap().to_string()).collect();
    let text = plans.join("\n");
    if std::env::var_os("OXBOW_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(text == expected, "run with OXBOW_BLESS=1 if this is right:\n{text}");
}

/// A PC with much memory.
fn large_pc(machine: MachineKind) -> MachineSpec {
    MachineSpec {
        machine,
        memory: Size::from_mib(6 << 10),
        cpus: 2,
        ..MachineSpec::default()
    }
}

#[test]
fn plans_are_as_the_golden_file_says() {
    let large = MachineSpec {
        memory: Size::from_mib(6 << 10),
        cpus: 3,
        cpu: "x86-64-v3".to_owned(),
        ..MachineSpec::default()
    };
    plans_are_as_golden(&[MachineSpec::default(), large, everything()], "microvm.plan");
}

#[test]
fn plan_of_a_pc_is_as_its_golden_file_says() {
    let dir = tempfile::TempDir::new().unwrap();
    plans_are_as_golden(&[large_pc(MachineKind::Pc), crate::pc::everything(&dir)], "pc.plan");
}

#[test]
fn plan_of_a_q35_is_as_its_golden_file_says() {
    let dir = tempfile::TempDir::new().unwrap();
    plans_are_as_golden(&[large_pc(MachineKind::Q35), crate::q35::everything(&dir)], "q35.plan");
}

#[test]
fn two_cards_do_not_fit_into_one_port() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut spec = crate::q35::everything(&dir);
    spec.devices.places = [("vga", spec::PciPlace::Port(1)), ("nvme", spec::PciPlace::Root(28))]
        .map(|(name, place)| (name.to_owned(), place))
        .into();
    let problems = plan(&spec).unwrap_err().0;
    assert_eq!(problems, ["nvme wants PCI address 00:1c.0, which port1 has"]);
    spec.devices.places.remove("nvme");
    assert_eq!(
        plan(&spec).unwrap_err().0,
        ["vga wants PCI address 01:00.0, which nvme has"]
    );
}

#[test]
fn lockstep_is_refused_for_a_pc() {
    let spec = MachineSpec {
        machine: MachineKind::Pc,
        engine: spec::EngineKind::Lockstep,
        ..MachineSpec::default()
    };
    assert_eq!(plan(&spec).unwrap_err().0, ["engine: lockstep cannot run a pc"]);
}

#[test]
fn conflicts_are_all_reported_with_both_names() {
    let mut spec = MachineSpec::default();
    let com1 = SerialConfig::com(0).unwrap();
    let other = SerialConfig {
        name: "other".to_owned(),
        port: 0x3fc,
        irq: 1,
    };
    spec.devices.serial = vec![com1, other];
    spec.devices.debug_exit = Some(DebugExitConfig { port: 0x60 });
    let mut problems = plan(&spec).unwrap_err().0;
    problems.sort();
    assert_eq!(
        problems,
        [
            "debug_exit/debug_exit at 0060-0063 overlaps i8042/data at 0060-0060",
            "debug_exit/debug_exit at 0060-0063 overlaps pit/port61 at 0061-0061",
            "other wants irq 1, which i8042 has",
            "other/uart at 03fc-0403 overlaps com1/uart at 03f8-03ff",
        ]
    );
}

#[test]
fn serial_ports_share_their_conventional_interrupts() {
    assert!(plan(&everything()).is_ok());
}

#[test]
fn bad_values_and_an_unknown_model_are_reported_together() {
    let spec = MachineSpec {
        cpus: 0,
        cpu: "z80".to_owned(),
        ..MachineSpec::default()
    };
    let text = plan(&spec).unwrap_err().to_string();
    assert!(
        text.contains("cpus") && text.contains("z80") && text.contains("x86-64-v3"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}
