//! iperf3 on this host, for guests to talk to.

use std::net::TcpListener;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;

/// A port of TCP that nobody has.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// iperf3 on this host, at the loopback address that both lead their gateway to.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Server {
    /// Starts it.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("iperf3");
        command.args(["--server", "--bind", "127.0.0.1", "--port", &port.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let child = command.spawn().context("cannot run iperf3")?;
        Ok(Self { child, port })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
