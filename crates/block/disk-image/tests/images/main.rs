//! Images of all formats: against a model, against QEMU's tools, under power cuts, and damaged.

mod chains;
mod damage;
mod direct;
mod killed;
mod kit;
mod maintenance;
mod model;
mod mutations;
mod peer;
mod power;
mod qemu;
mod rewrite;
mod vhdx;
