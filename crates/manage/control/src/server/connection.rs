//! One client: a thread that answers its requests, and one that writes.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use serde_json::Value;
use serde_json::json;

use super::Outbox;
use super::Shared;
use super::commands;
use crate::ErrorKind;
use crate::Greeting;
use crate::MAX_REQUEST;
use crate::Refusal;
use crate::Request;
use crate::VERSION;

/// A client that takes nothing for so long is gone.
const WRITE: Duration = Duration::from_secs(20);

/// A connection, as requests see it that take their time.
pub(super) struct Link<'a> {
    socket: &'a UnixStream,
    pub(super) outbox: &'a Arc<Outbox>,
}

impl Link<'_> {
    /// Whether nobody waits for the answer any more.
    pub(super) fn is_over(&self) -> bool {
        if self.outbox.is_over() {
            return true;
        }
        // A client may have shut down its own side and still read: only both sides count.
        let mut fds = [PollFd::new(self.socket, PollFlags::empty())];
        let now = Timespec::default();
        let polled = rustix::event::poll(&mut fds, Some(&now));
        let [fd] = &fds;
        polled.is_ok() && fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

/// The body of a connection's thread.
pub(super) fn run(shared: &Arc<Shared>, id: u64, socket: &UnixStream, outbox: &Arc<Outbox>) {
    outbox.push(&Greeting {
        oxbow: "control".to_owned(),
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    });
    let writer = socket.try_clone().and_then(|socket| {
        let outbox = Arc::clone(outbox);
        let body = move || write_out(&socket, &outbox);
        std::thread::Builder::new()
            .name(format!("control-{id}-out"))
            .spawn(body)
    });
    match writer {
        Ok(writer) => {
            let link = Link { socket, outbox };
            if let Err(error) = answer_all(shared, &link) {
                tracing::debug!(%error, "control: a connection broke");
            }
            outbox.close();
            let _ = writer.join();
        }
        Err(error) => tracing::warn!(%error, "control: no thread for a connection"),
    }
    // It may have ended already.
    let _ = socket.shutdown(Shutdown::Both);
}

fn write_out(mut socket: &UnixStream, outbox: &Outbox) {
    let limited = socket.set_write_timeout(Some(WRITE));
    while let Some(line) = outbox.next() {
        if limited.is_err() || socket.write_all(&line).is_err() {
            outbox.kill();
            // The reader is to return too.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Answers requests, one after the other, until the client leaves.
fn answer_all(shared: &Arc<Shared>, link: &Link<'_>) -> io::Result<()> {
    let mut reader = BufReader::new(link.socket);
    let mut line = Vec::new();
    // The next request is read when the answer to the last one is out: a client that reads nothing holds up itself.
    while link.outbox.wait_empty() {
        line.clear();
        let limit = u64::try_from(MAX_REQUEST).unwrap_or(u64::MAX).saturating_add(1);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if line.len() > MAX_REQUEST && line.last() != Some(&b'\n') {
            let message = format!("a request has {MAX_REQUEST} bytes at most");
            refuse(link, Refusal::new(ErrorKind::TooLong, message));
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match parse(&line) {
            Ok((id, request)) => answer(shared, link, id, &request),
            Err((id, refusal)) => link.outbox.push(&json!({"id": id, "error": refusal})),
        }
    }
    Ok(())
}

fn refuse(link: &Link<'_>, refusal: Refusal) {
    link.outbox.push(&json!({"id": null, "error": refusal}));
}

fn answer(shared: &Shared, link: &Link<'_>, id: Value, request: &Request) {
    let reply = match commands::run(shared, link, request) {
        Ok(value) => json!({"id": id, "ok": value}),
        Err(refusal) => json!({"id": id, "error": refusal}),
    };
    link.outbox.push(&reply);
    if matches!(request, Request::Quit {}) {
        // The reply first: the machine takes this process with it.
        link.outbox.wait_empty();
        shared.machine.quit();
    }
}

/// A request and its id, or the id with what is wrong.
fn parse(line: &[u8]) -> Result<(Value, Request), (Value, Refusal)> {
    let malformed = |error: serde_json::Error| Refusal::new(ErrorKind::Malformed, format!("not a request: {error}"));
    let value: Value = serde_json::from_slice(line).map_err(|error| (Value::Null, malformed(error)))?;
    let Value::Object(mut fields) = value else {
        let refusal = Refusal::new(ErrorKind::Malformed, "not a request: a request is a JSON object");
        return Err((Value::Null, refusal));
    };
    let id = fields.remove("id").unwrap_or(Value::Null);
    match serde_json::from_value(Value::Object(fields)) {
        Ok(request) => Ok((id, request)),
        Err(error) => Err((id, malformed(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_comes_back_whatever_it_is_and_however_wrong_the_rest() {
        let (id, request) = parse(br#"{"id": [1, "x"], "do": "status"}"#).unwrap();
        assert_eq!((id, request), (json!([1, "x"]), Request::Status {}));
        let (id, refusal) = parse(br#"{"id": 7, "do": "fly"}"#).unwrap_err();
        assert_eq!((id, refusal.kind), (json!(7), ErrorKind::Malformed));
        assert!(refusal.message.contains("fly"));
    }

    #[test]
    fn nonsense_is_malformed() {
        let deep = "[".repeat(100_000);
        for line in [&b"hello"[..], b"[1]", b"{", b"\xFF\xFE", b"{\"do\":1}", deep.as_bytes()] {
            let (id, refusal) = parse(line).unwrap_err();
            assert_eq!((id, refusal.kind), (Value::Null, ErrorKind::Malformed));
            assert!(!refusal.message.contains('\n'));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
