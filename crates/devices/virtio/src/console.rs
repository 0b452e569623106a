//! Console device: up to 16 ports, each a console of the guest's or a serial port with a name.
//!
//! A driver without multiport sees the first port. There are no sizes of terminals.
//!
//! Spec: virtio 1.2 §5.3.

use std::collections::VecDeque;

use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::SerialBackend;
use device_model::Snapshot;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;

/// Ports at most.
pub const PORTS: usize = 16;
/// Entries of each queue.
const ENTRIES: u16 = 64;
/// Bytes that a port moves at a time, and in one poll.
const PIECE: usize = 4096;
const TURN: usize = 64 << 10;
/// Messages for the driver that wait at most.
const MESSAGES: usize = 8 * PORTS;
/// The queues of control messages.
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// Where a byte is sent at once, in configuration space.
const EMERGENCY: usize = 8;

/// Features (§5.3.3).
const MULTIPORT: u64 = 1 << 1;
const EMERG_WRITE: u64 = 1 << 2;

/// Control messages (§5.3.6.2).
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const DEVICE_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// One port.
pub struct Port {
    /// What the guest finds it by; none for a console.
    pub name: Option<String>,
    /// Its far end.
    pub backend: Box<dyn SerialBackend>,
}

/// A port's buffers, as they are saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PortState {
    /// The guest has it open.
    open: bool,
    /// Buffers that wait for what arrives.
    receiving: Option<Chain>,
    /// Buffers that are being sent, and what was taken out of them already.
    sending: Option<Chain>,
    piece: VecDeque<u8>,
    sent: u64,
    received: u64,
}

/// The device.
pub struct Console {
    // Wiring
    ports: Vec<Port>,
    // State
    states: Vec<PortState>,
    multiport: bool,
    messages: VecDeque<Vec<u8>>,
}

impl Console {
    /// A console with `ports`: 1 to 16 of them.
    #[must_use]
    pub fn new(mut ports: Vec<Port>) -> Self {
        ports.truncate(PORTS);
        Self {
            states: vec![PortState::default(); ports.len()],
            ports,
            multiport: false,
            messages: VecDeque::new(),
        }
    }

    fn message(&mut self, port: usize, event: u16, value: u16, text: &str) {
        if self.messages.len() >= MESSAGES {
            return;
        }
        let port = u32::try_from(port).unwrap_or(u32::MAX);
        let (port, event, value) = (port.to_le_bytes(), event.to_le_bytes(), value.to_le_bytes());
        let parts = [port.as_slice(), &event, &value, text.as_bytes()];
        self.messages.push_back(parts.concat());
    }

    fn control(&mut self, rings: &mut Rings<'_>) {
        while let Some(mut chain) = rings.pop(CONTROL_TRANSMIT) {
            let message = chain.take_obj::<[u8; 8]>(rings.memory());
            let Some([a, b, c, d, e, f, g, h]) = rings.check(message) else {
                return;
            };
            let port = crate::queue::index(u32::from_le_bytes([a, b, c, d]).into());
            self.told(port, u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
            rings.push(CONTROL_TRANSMIT, chain.head, 0);
        }
        while !self.messages.is_empty() {
            let Some(mut chain) = rings.pop(CONTROL_RECEIVE) else {
                return;
            };
            let message = self.messages.pop_front().unwrap_or_default();
            let put = chain.put(rings.memory(), &message);
            let Some(put) = rings.check(put) else { return };
            rings.push(CONTROL_RECEIVE, chain.head, u32::try_from(put).unwrap_or(0));
        }
    }

    /// The driver has told something of a port.
    fn told(&mut self, port: usize, event: u16, value: u16) {
        match (event, value) {
            (event::DEVICE_READY, 1) => {
                for port in 0..self.ports.len() {
                    self.message(port, event::DEVICE_ADD, 1, "");
                }
            }
            (event::PORT_READY, 1) => {
                let Some(name) = self.ports.get(port).map(|port| port.name.clone()) else {
                    return;
                };
                match name {
                    Some(name) => self.message(port, event::PORT_NAME, 1, &name),
                    None => self.message(port, event::CONSOLE_PORT, 1, ""),
                }
                self.message(port, event::PORT_OPEN, 1, "");
            }
            (event::PORT_OPEN, value) => {
                if let Some(state) = self.states.get_mut(port) {
                    state.open = value != 0;
                }
            }
            _ => {}
        }
    }

    /// Moves what there is to move; whether there is more.
    fn exchange(&mut self, rings: &mut Rings<'_>) -> bool {
        let mut more = false;
        let known = if self.multiport { self.ports.len() } else { 1 };
        for (number, (port, state)) in self.ports.iter_mut().zip(&mut self.states).enumerate().take(known) {
            let (receive, transmit) = queues_of(number);
            let sent = state.send(&mut *port.backend, transmit, rings);
            more |= rings.check(sent).unwrap_or(false);
            if state.open || !self.multiport {
                let received = state.receive(&mut *port.backend, receive, rings);
                more |= rings.check(received).unwrap_or(false);
            }
        }
        more
    }
}

/// Receive and transmit queue of a port (§5.3.2).
fn queues_of(port: usize) -> (usize, usize) {
    let first = if port == 0 { 0 } else { 2 + port * 2 };
    (first, first + 1)
}

impl PortState {
    /// Sends what the guest has given. Whether there is more than one poll sends.
    fn send(&mut self, to: &mut dyn SerialBackend, queue: usize, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        let mut left = TURN;
        loop {
            while let Some(byte) = self.piece.front() {
                // Without room the far end asks for a poll when there is some.
                if !to.send(*byte) {
                    return Ok(false);
                }
                self.piece.pop_front();
                self.sent = self.sent.wrapping_add(1);
            }
            if left == 0 {
                return Ok(true);
            }
            let chain = match self.sending.take().or_else(|| rings.pop(queue)) {
                Some(chain) => chain,
                None => return Ok(false),
            };
            left -= self.take_piece(chain, left, queue, rings)?;
        }
    }

    /// Takes the next piece out of a chain, which is given back when it is empty. Returns the piece's length.
    fn take_piece(
        &mut self,
        mut chain: Chain,
        most: usize,
        queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<usize, RingError> {
        let len = crate::queue::index(chain.readable_len()).min(most).min(PIECE);
        let mut bytes = vec![0; len];
        chain.take(rings.memory(), &mut bytes)?;
        self.piece.extend(bytes);
        if chain.readable_len() == 0 {
            rings.push(queue, chain.head, 0);
        } else {
            self.sending = Some(chain);
        }
        Ok(len)
    }

    /// Gives the guest what has arrived. Whether there is more than one poll receives.
    fn receive(
        &mut self,
        from: &mut dyn SerialBackend,
        queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<bool, RingError> {
        let mut left = TURN;
        while left > 0 {
            let mut chain = match self.receiving.take().or_else(|| rings.pop(queue)) {
                Some(chain) => chain,
                None => return Ok(false),
            };
            let room = crate::queue::index(chain.writable_len()).min(PIECE).min(left);
            if room == 0 {
                return Err(RingError::Shape);
            }
            let bytes: Vec<u8> = std::iter::from_fn(|| from.receive()).take(room).collect();
            if bytes.is_empty() {
                self.receiving = Some(chain);
                return Ok(false);
            }
            let put = chain.put(rings.memory(), &bytes)?;
            rings.push(queue, chain.head, u32::try_from(put).unwrap_or(0));
            self.received = self.received.wrapping_add(put as u64);
            left -= put.min(left);
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), RestoreError> {
        if self.piece.len() > PIECE {
            return Err(RestoreError::Invalid("too much on its way to a console".to_owned()));
        }
        for chain in self.receiving.iter().chain(&self.sending) {
            chain.check()?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u16 {
        id::CONSOLE
    }

    fn features(&self) -> u64 {
        MULTIPORT | EMERG_WRITE
    }

    fn queues(&self) -> Vec<u16> {
        // Those of the first port, of control messages, and of the other ports.
        vec![ENTRIES; 2 + self.ports.len().max(1) * 2]
    }

    fn config(&self) -> Vec<u8> {
        let ports = u32::try_from(self.ports.len()).unwrap_or(0);
        [[0; 4], ports.to_le_bytes(), [0; 4]].concat()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if offset == EMERGENCY
            && let (Some(port), Some(byte)) = (self.ports.first_mut(), bytes.first())
        {
            // A guest that is about to die does not wait for room.
            let _ = port.backend.send(*byte);
        }
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & MULTIPORT != 0;
    }

    fn poll(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        if self.multiport {
            self.control(rings);
        }
        self.exchange(rings).then_some(now + 1)
    }

    fn reset(&mut self) {
        self.states.fill(PortState::default());
        self.multiport = false;
        self.messages.clear();
    }
}

impl Snapshot for Console {
    type State = ConsoleV1;

    fn save(&self) -> ConsoleV1 {
        let Self {
            ports: _,
            states,
            multiport,
            messages,
        } = self;
        ConsoleV1 {
            states: states.clone(),
            multiport: *multiport,
            messages: messages.clone(),
        }
    }

    fn restore(&mut self, saved: ConsoleV1) -> Result<(), RestoreError> {
        let ConsoleV1 {
            states,
            multiport,
            messages,
        } = saved;
        let known = |message: &Vec<u8>| message.len() <= PIECE;
        if states.len() != self.states.len() || messages.len() > MESSAGES || !messages.iter().all(known) {
            return Err(RestoreError::Invalid("a console of another shape".to_owned()));
        }
        for state in &states {
            state.check()?;
        }
        (self.states, self.multiport, self.messages) = (states, multiport, messages);
        Ok(())
    }
}

impl Inspect for Console {
    fn inspect(&self) -> Node {
        let mut node = Node::tree().with("multiport", self.multiport);
        for (number, (port, state)) in self.ports.iter().zip(&self.states).enumerate() {
            let kind = port.name.clone().unwrap_or_else(|| "console".to_owned());
            let shown = Node::tree()
                .with("name", kind)
                .with("open", state.open)
                .with("sent", state.sent)
                .with("received", state.received);
            node = node.with(&format!("port{number}"), shown);
        }
        node
    }
}

/// Saved state of [`Console`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsoleV1 {
    states: Vec<PortState>,
    multiport: bool,
    messages: VecDeque<Vec<u8>>,
}

impl Schema for ConsoleV1 {
    const NAME: &'static str = "virtio_console";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
