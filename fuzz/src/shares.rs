//! Messages of a guest to the servers of a shared folder: FUSE and 9P.
//!
//! The first byte chooses the protocol. Each message is an operation, room for the answer, flags, the length of its body, numbers of
//! the header and the body. The folder has a file, a directory and a link in it, and is protected: nothing on the host
//! changes, whatever is asked.

use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;

use device_model::FileServer;
use shared_folder::Folder;
use shared_folder::fuse::FuseConfig;
use shared_folder::fuse::FuseServer;
use shared_folder::fuse::Request;
use shared_folder::fuse::wire::InHeader;
use shared_folder::nine_p::NinePServer;
use test_kit::Bytes;

use crate::input::Input;

/// Executes one input.
///
/// # Panics
/// When a server panics, or breaks a rule that holds for every server.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() & 1 {
        0 => {
            let new = || FuseServer::new(folder(), FuseConfig::default());
            let server = new();
            answer(
                &server,
                fuse(26, 0, 0, &[7, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]),
                256,
            );
            converse(&server, new, &mut input, |input, operation, body| {
                let (node, odd) = (input.number(1), input.number(1) as u32);
                let header = InHeader {
                    opcode: operation,
                    nodeid: node,
                    ..Default::default()
                };
                // Whatever becomes of it.
                let _ = Request::parse(header, body);
                fuse(operation % 54, node, odd & odd >> 4, body)
            });
        }
        _ => {
            let new = || NinePServer::new(folder());
            let server = new();
            answer(&server, nine_p(100, 0, b"\0\0\x08\0\x08\09P2000.L"), 256);
            answer(
                &server,
                nine_p(104, 0, b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0"),
                256,
            );
            converse(&server, new, &mut input, |input, operation, body| {
                let odd = input.number(1) as u32;
                nine_p(operation as u8, odd & odd >> 4, body)
            });
        }
    }
}

/// Sends all messages of the input. Now and then what is open is saved, and restored into a new server.
fn converse<S: FileServer>(
    server: &S,
    new: impl Fn() -> S,
    input: &mut Input<'_>,
    message: impl Fn(&mut Input<'_>, u32, &[u8]) -> Vec<u8>,
) {
    while !input.is_empty() {
        let (operation, room, flags, len) = (input.number(1), input.number(2), input.byte(), input.byte());
        let body = input.bytes(len.into());
        let message = message(input, operation as u32, body);
        answer(server, message, room as usize);
        if flags & 7 == 7 {
            let saved = server.save();
            let other = new();
            other.restore(saved.clone()).expect("a server takes back its own state");
            assert_eq!(other.save(), saved);
        }
        let _ = server.inspect();
    }
}

/// Has one message answered.
fn answer<S: FileServer>(server: &S, request: Vec<u8>, room: usize) {
    let mut message = Bytes::new(request, room);
    let len = server.answer(&mut message);
    assert!(len <= room);
    // Both protocols have the length first.
    if let Some(said) = message.answer.first_chunk().filter(|_| len > 0) {
        assert_eq!(u32::from_le_bytes(*said) as usize, len);
    }
}

/// A message that is `odd` bytes longer than it says.
fn fuse(opcode: u32, node: u64, odd: u32, body: &[u8]) -> Vec<u8> {
    let len = (40 + body.len() as u32).wrapping_sub(odd);
    let mut message = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
    message.extend(1u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.resize(40, 0);
    message.extend(body);
    message
}

/// As [`fuse`].
fn nine_p(kind: u8, odd: u32, body: &[u8]) -> Vec<u8> {
    let len = (7 + body.len() as u32).wrapping_sub(odd);
    let mut message = len.to_le_bytes().to_vec();
    message.extend([kind, 1, 0]);
    message.extend(body);
    message
}

/// The folder, protected.
///
/// # Panics
/// When the host has no place for it.
pub(crate) fn folder() -> Folder {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("oxbow-fuzz-{}", std::process::id()));
        plant(&path).expect("the host has a temporary directory");
        path
    });
    Folder::open(path, true).expect("the folder is there")
}

fn plant(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path.join("d"))?;
    std::fs::write(path.join("f"), [7; 10_000])?;
    // It leads out: nobody is to follow it.
    std::os::unix::fs::symlink("..", path.join("l"))
}
