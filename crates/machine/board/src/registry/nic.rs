//! Network cards: where they go and how they are built.

use device_model::SharedDevice;
use nic::e1000::E1000;
use nic::e1000::E1000Config;
use nic::e1000::Model;
use nic::pcnet;
use nic::pcnet::Pcnet;
use nic::pcnet::PcnetConfig;
use spec::MachineSpec;
use spec::NicModel;

use super::Builder;
use super::bdf;
use super::pin;
use super::waker;
use crate::BuildError;
use crate::Placement;

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

pub(super) fn place_e1000(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "e1000", |model| gigabit(model).is_some())
}

pub(super) fn build_e1000(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let nic = builder.networks.plug(builder.spec, place)?;
    let model = gigabit(nic.model).unwrap_or_default();
    let config = E1000Config { model, mac: nic.mac };
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let waker = waker(builder, place);
    let chip = E1000::new(wires, config, &builder.memory, nic.port, waker);
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
    let chip = Pcnet::new(wires, config, &builder.memory, nic.port, waker);
    Ok(builder.slot(place, chip))
}
