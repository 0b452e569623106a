//! Network cards: where they go and how they are built.

use std::sync::Arc;

use device_model::SharedDevice;
use device_model::pci::PciFunction;
use device_model::pci::PciHeader;
use device_model::pci::reg;
use firmware::rom;
use nic::e1000::E1000;
use nic::e1000::E1000Config;
use nic::e1000::Model;
use nic::pcnet;
use nic::pcnet::Pcnet;
use nic::pcnet::PcnetConfig;
use spec::BootDevice;
use spec::MachineSpec;
use spec::NicModel;

use super::Builder;
use super::bdf;
use super::pin;
use super::storage::firmware_path;
use super::waker;
use crate::BuildError;
use crate::Placement;
use crate::boot::read_file;

/// The controller that a model is; none if it is no gigabit card of Intel's.
fn gigabit(model: NicModel) -> Option<Model> {
    match model {
        NicModel::E1000 => Some(Model::I82540Em),
        NicModel::I82543Gc => Some(Model::I82543Gc),
        NicModel::I82545Em => Some(Model::I82545Em),
        NicModel::Pcnet | NicModel::Am79C970A | NicModel::Virtio => None,
    }
}

/// The cards of those models that `wanted` says.
fn place(spec: &MachineSpec, chip: &'static str, wanted: fn(NicModel) -> bool) -> Vec<Placement> {
    let nics = (0u32..).zip(&spec.devices.nics);
    let nics = nics.filter(|(_, nic)| wanted(nic.model));
    nics.map(|(index, _)| {
        let name = format!("nic{index}");
        Placement::new(&name, chip).at(bdf::of(spec, &name)).index(index)
    })
    .collect()
}

/// What iPXE calls a model that it has a ROM for; firmware passes over ROMs for other identifiers than the card's.
fn ipxe(model: NicModel) -> Option<&'static str> {
    match model {
        NicModel::E1000 => Some("e1000"),
        NicModel::Pcnet | NicModel::Am79C970A => Some("pcnet"),
        NicModel::Virtio => Some("virtio"),
        NicModel::I82543Gc | NicModel::I82545Em => None,
    }
}

/// Whether the machine is to boot from the network.
fn boots_from_network(spec: &MachineSpec) -> bool {
    spec.boot.order.contains(&BootDevice::Network)
}

/// Gives a card its expansion ROM, if it has one.
pub(super) fn add_rom(spec: &MachineSpec, place: &Placement, header: &mut PciHeader) -> Result<(), BuildError> {
    let Some(config) = spec.devices.nics.get(place.index as usize) else {
        return Ok(());
    };
    let (path, image) = match (&config.romfile, ipxe(config.model)) {
        (Some(path), _) => (path.clone(), read_file(path)?),
        (None, Some(name)) if boots_from_network(spec) => {
            let path = rom::find_network(name)?;
            let mut image = read_file(&path)?;
            rom::adopt(&mut image, header.word(reg::VENDOR), header.word(reg::VENDOR + 2));
            (path, image)
        }
        (None, _) => return Ok(()),
    };
    header.add_rom(Arc::new(rom::expansion(&path, &image)?));
    Ok(())
}

/// Where firmware finds the cards that it may boot from.
pub(super) fn boot_paths(spec: &MachineSpec) -> Vec<String> {
    let nics = spec.devices.nics.iter().enumerate();
    let with_rom = nics.filter(|(_, nic)| nic.romfile.is_some() || ipxe(nic.model).is_some());
    let paths = with_rom.map(|(index, _)| {
        let at = bdf::of(spec, &format!("nic{index}"));
        format!("{}/ethernet-phy@0", firmware_path(at, "ethernet"))
    });
    paths.collect()
}

pub(super) fn place_e1000(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "e1000", |model| gigabit(model).is_some())
}

pub(super) fn build_e1000(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let nic = builder.networks.plug(builder.spec, place)?;
    let model = gigabit(nic.model).unwrap_or_default();
    let config = E1000Config { model, mac: nic.mac };
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let waker = waker(builder, place);
    let mut chip = E1000::new(wires, config, &builder.memory, nic.port, waker);
    add_rom(builder.spec, place, chip.header_mut())?;
    Ok(builder.slot(place, chip))
}

/// The controller that a model is; none if it is no PCnet.
fn lance(model: NicModel) -> Option<pcnet::Model> {
    match model {
        NicModel::Pcnet => Some(pcnet::Model::Am79C973),
        NicModel::Am79C970A => Some(pcnet::Model::Am79C970A),
        NicModel::E1000 | NicModel::I82543Gc | NicModel::I82545Em | NicModel::Virtio => None,
    }
}

pub(super) fn place_pcnet(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "pcnet", |model| lance(model).is_some())
}

pub(super) fn build_pcnet(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let nic = builder.networks.plug(builder.spec, place)?;
    let model = lance(nic.model).unwrap_or_default();
    let config = PcnetConfig { model, mac: nic.mac };
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let waker = waker(builder, place);
    let mut chip = Pcnet::new(wires, config, &builder.memory, nic.port, waker);
    add_rom(builder.spec, place, chip.header_mut())?;
    Ok(builder.slot(place, chip))
}
