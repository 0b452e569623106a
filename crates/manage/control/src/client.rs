//! The other end: a program that controls a machine.

use std::collections::VecDeque;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::Event;
use crate::Greeting;
use crate::Picture;
use crate::Refusal;
use crate::Request;
use crate::VERSION;
use crate::protocol::MAX_REPLY;

/// A server that says nothing for so long at the beginning is none.
const GREETING: Duration = Duration::from_secs(10);

/// Why a client got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no machine listens at `{}`", .path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the machine broke")]
    Broken(#[source] io::Error),
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// The other end does not speak the protocol, or another version.
    #[error("`{}` is no control socket of this version: {reason}", .path.display())]
    Protocol {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The machine refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    next_id: u64,
    /// Events that came while a reply was waited for.
    events: VecDeque<Event>,
}

impl Client {
    /// Connects, and checks who is there.
    ///
    /// # Errors
    /// [`ClientError`] when nobody listens, or something else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        stream.set_read_timeout(Some(GREETING)).map_err(ClientError::Broken)?;
        let mut client = Self {
            reader: BufReader::new(stream),
            path: path.to_owned(),
            next_id: 0,
            events: VecDeque::new(),
        };
        let line = client.read_line()?;
        client.check(line)?;
        let stream = client.reader.get_ref();
        stream.set_read_timeout(None).map_err(ClientError::Broken)?;
        Ok(client)
    }

    fn check(&self, line: Value) -> Result<(), ClientError> {
        if let Some(refusal) = line.get("error") {
            return Err(self
                .read(refusal.clone())
                .map_or_else(|error| error, ClientError::Refused));
        }
        let greeting: Greeting = self.read(line)?;
        if greeting.oxbow != "control" || greeting.version != VERSION {
            let Greeting { oxbow, version, .. } = greeting;
            return Err(self.protocol(format!(
                "it speaks `{oxbow}` version {version}, not `control` version {VERSION}"
            )));
        }
        Ok(())
    }

    /// Asks for something, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`] when the machine refuses or is gone.
    pub fn call(&mut self, request: &Request) -> Result<Value, ClientError> {
        self.next_id += 1;
        let id = json!(self.next_id);
        let mut line = serde_json::to_value(request).map_err(|error| self.protocol(error.to_string()))?;
        if let Some(fields) = line.as_object_mut() {
            fields.insert("id".to_owned(), id.clone());
        }
        let text = format!("{line}\n");
        let mut stream = self.reader.get_ref();
        stream.write_all(text.as_bytes()).map_err(ended)?;
        loop {
            let mut line = self.read_line()?;
            if line.get("event").is_some() {
                let event = self.read(line)?;
                self.events.push_back(event);
                continue;
            }
            if let Some(refusal) = line.get("error") {
                return Err(self
                    .read(refusal.clone())
                    .map_or_else(|error| error, ClientError::Refused));
            }
            if line.get("id") == Some(&id)
                && let Some(value) = line.get_mut("ok")
            {
                return Ok(value.take());
            }
            return Err(self.protocol("a reply without a request".to_owned()));
        }
    }

    /// The same, with the answer's type.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn get<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let value = self.call(request)?;
        self.read(value)
    }

    /// A picture of the screen: what it is, and the PNG file.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn screenshot(&mut self) -> Result<(Picture, Vec<u8>), ClientError> {
        let picture: Picture = self.get(&Request::Screenshot {})?;
        let file = STANDARD.decode(&picture.png);
        let file = file.map_err(|error| self.protocol(error.to_string()))?;
        Ok((picture, file))
    }

    /// The next event after [`Request::Subscribe`], whenever it comes; none when the machine has ended.
    ///
    /// # Errors
    /// [`ClientError`] when the connection breaks.
    pub fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.read_line() {
            Ok(line) => self.read(line).map(Some),
            Err(ClientError::Ended) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_line(&mut self) -> Result<Value, ClientError> {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_REPLY).unwrap_or(u64::MAX);
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut line);
        read.map_err(ended)?;
        if line.is_empty() {
            return Err(ClientError::Ended);
        }
        serde_json::from_slice(&line).map_err(|error| self.protocol(error.to_string()))
    }

    fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, ClientError> {
        serde_json::from_value(value).map_err(|error| self.protocol(error.to_string()))
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            reason,
        }
    }
}

/// A connection that the other end has closed is no accident.
fn ended(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Broken(error),
    }
}
