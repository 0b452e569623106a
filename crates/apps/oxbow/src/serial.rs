//! Where serial ports and consoles lead: `--serial`, `--console`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::Sender;

use anyhow::Context;
use board::Backends;
use board::SerialHost;
use board::serial_wire;

use crate::console;
use crate::end::End;
use crate::pseudo_terminal::PseudoTerminal;

/// Where one port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SerialTarget {
    /// Standard input and output.
    Stdio,
    /// Output into a file.
    File(PathBuf),
    /// A new pseudo-terminal.
    Pty,
    /// Nowhere.
    None,
}

impl FromStr for SerialTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "pty" => Ok(Self::Pty),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err("a port leads to stdio, file:PATH, pty or none".to_owned()),
            },
        }
    }
}

/// A port's far end, open.
enum Line {
    Stdio,
    File(PathBuf, File),
    Pty(PseudoTerminal),
}

/// All ports' far ends.
pub(crate) struct SerialLines {
    lines: Vec<(SerialHost, Line)>,
}

impl SerialLines {
    /// Opens what ports lead to, by their names. The machine's ends go into `backends`.
    pub(crate) fn open(targets: Vec<(String, SerialTarget)>, backends: &mut Backends) -> anyhow::Result<Self> {
        let mut lines = Vec::new();
        for (name, target) in targets {
            let line = match target {
                SerialTarget::Stdio => Line::Stdio,
                SerialTarget::File(path) => {
                    let what = || format!("cannot write `{}`", path.display());
                    let file = File::create(&path).with_context(what)?;
                    Line::File(path, file)
                }
                SerialTarget::Pty => {
                    let pty = PseudoTerminal::open().context("cannot open a pseudo-terminal")?;
                    eprintln!("oxbow: {name} is at {}", pty.path());
                    Line::Pty(pty)
                }
                SerialTarget::None => continue,
            };
            let (port, host) = serial_wire();
            backends.serial.insert(name, port);
            lines.push((host, line));
        }
        Ok(Self { lines })
    }

    /// Whether a port leads to the terminal.
    pub(crate) fn has_stdio(&self) -> bool {
        self.lines.iter().any(|(_, line)| matches!(line, Line::Stdio))
    }

    /// Starts the threads that carry bytes. What ends the machine goes to `ends`; `done` is dropped when the last byte
    /// of output is out.
    pub(crate) fn connect(self, ends: &Sender<End>, done: &Sender<()>) -> std::io::Result<()> {
        for (host, line) in self.lines {
            match line {
                Line::Stdio => {
                    console::spawn_input(host.clone(), ends.clone())?;
                    let name = "standard output".to_owned();
                    spawn_output(host, std::io::stdout(), name, ends.clone(), done.clone())?;
                }
                Line::File(path, file) => {
                    let name = format!("`{}`", path.display());
                    spawn_output(host, file, name, ends.clone(), done.clone())?;
                }
                Line::Pty(pty) => {
                    let (input, output) = pty.split()?;
                    input.spawn(host.clone())?;
                    spawn_output(
                        host,
                        output,
                        "the pseudo-terminal".to_owned(),
                        ends.clone(),
                        done.clone(),
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Carries the guest's output to `to`.
fn spawn_output(
    host: SerialHost,
    mut to: impl Write + Send + 'static,
    name: String,
    ends: Sender<End>,
    done: Sender<()>,
) -> std::io::Result<()> {
    let body = move || {
        let mut bytes = Vec::new();
        while host.read(&mut bytes) {
            if let Err(error) = to.write_all(&bytes).and_then(|()| to.flush()) {
                host.close();
                let _ = ends.send(match error.kind() {
                    std::io::ErrorKind::BrokenPipe => End::OutputClosed,
                    _ => End::OutputFailed(format!("cannot write {name}: {error}")),
                });
                break;
            }
            bytes.clear();
        }
        drop(done);
    };
    std::thread::Builder::new().name("serial out".to_owned()).spawn(body)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_and_others_are_refused() {
        assert_eq!("stdio".parse(), Ok(SerialTarget::Stdio));
        assert_eq!("file:/tmp/a:b".parse(), Ok(SerialTarget::File("/tmp/a:b".into())));
        for text in ["", "file:", "file", "tcp:1", "stdin"] {
            assert!(text.parse::<SerialTarget>().is_err(), "{text}");
        }
    }
}
