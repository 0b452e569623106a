//! `oxbow network-switch`: the switch of a named network, which machines start when they need it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context;
use board::SwitchStarter;
use clap::Args;
use spec::NetworkConfig;
use vnet::hub::Hub;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct NetworkSwitchArgs {
    /// The network, in JSON
    network: String,
}

pub(crate) fn run(args: &NetworkSwitchArgs) -> Result<ExitCode, Failure> {
    let network: NetworkConfig = serde_json::from_str(&args.network).context("no network")?;
    let config = board::hub_config(&network).context("not a network of several machines")?;
    let directory = vnet::hub::directory().context("no place for sockets")?;
    let hub = Hub::open(&directory, &config).with_context(|| format!("cannot open `{}`", config.name));
    // Another process may have been faster.
    if let Some(hub) = hub.map_err(Failure::host)? {
        hub.run().context("the network ends").map_err(Failure::host)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts such a process, which outlives this one.
pub(crate) fn starter() -> SwitchStarter {
    Arc::new(|network| {
        let network = serde_json::to_string(network)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["network-switch", &network])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not with the machine, when a terminal ends that.
            .process_group(0);
        let mut child = command.spawn()?;
        std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || child.wait())?;
        Ok(())
    })
}
