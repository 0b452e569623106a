//! What the device and the thread share: streams with their buffers, and who has to look at which.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::Flow;
use device_model::FlowKind;
use device_model::FlowStatus;
use device_model::StreamHost;
use device_model::StreamWaker;
use rustix::fd::OwnedFd;

use crate::lane::Lane;

/// Streams at most, those included that are still being delivered after their end.
pub const STREAMS: usize = 1024;
/// Bytes of one stream that wait for the guest at most.
pub(crate) const FROM_HOST: usize = 64 << 10;
/// Ports that programs of the host get, the first of them.
const FIRST_PORT: u32 = 1 << 30;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest wants it; the program is being reached.
    Connecting,
    /// A program wants it; the guest has not answered.
    Offered,
    /// Both have it.
    Open,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Names it and its socket, since a flow may come again.
    pub(crate) token: u64,
    pub(crate) phase: Phase,
    pub(crate) to_host: Lane,
    pub(crate) from_host: Lane,
    pub(crate) delivered: u64,
    /// The program sends and takes nothing any more.
    pub(crate) ended: bool,
    pub(crate) deaf: bool,
    /// The guest does not.
    pub(crate) guest_ended: bool,
    pub(crate) guest_deaf: bool,
    /// The device has taken it from what is offered, or wanted it.
    known: bool,
    /// It is among those that the device, or the thread, has to look at.
    news: bool,
    work: bool,
}

impl Stream {
    fn new(token: u64, phase: Phase, kind: FlowKind) -> Self {
        Self {
            token,
            phase,
            to_host: Lane::new(kind),
            from_host: Lane::new(kind),
            delivered: 0,
            ended: false,
            deaf: false,
            guest_ended: false,
            guest_deaf: false,
            known: phase == Phase::Connecting,
            news: false,
            work: false,
        }
    }

    /// Bytes that may be read from the program.
    pub(crate) fn room(&self) -> usize {
        if self.phase != Phase::Open || self.guest_deaf || self.ended {
            return 0;
        }
        FROM_HOST.saturating_sub(self.from_host.len())
    }
}

/// What the thread is to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Reach the program of a stream.
    Connect(Flow, u64),
    /// Look at a stream.
    Look(Flow),
    /// Deliver what is left, and close the socket.
    Close(u64, Lane),
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) streams: BTreeMap<Flow, Stream>,
    offered: VecDeque<Flow>,
    news: VecDeque<Flow>,
    pub(crate) tasks: VecDeque<Task>,
    waker: Option<StreamWaker>,
    /// The waker is to be called when the lock is let go of.
    wake: bool,
    /// Sockets that there are, or will be.
    pub(crate) sockets: usize,
    next_token: u64,
    next_port: u32,
    pub(crate) stop: bool,
}

impl Inner {
    pub(crate) fn is_full(&self) -> bool {
        self.sockets >= STREAMS
    }

    /// A name for another socket.
    pub(crate) fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// The program of a stream takes nothing any more: what is left counts as delivered.
    pub(crate) fn deafen(&mut self, flow: Flow, token: u64) {
        if let Some(stream) = self.stream(flow, token)
            && !stream.deaf
        {
            stream.deaf = true;
            stream.delivered += stream.to_host.len() as u64;
            stream.to_host.clear();
            self.tell(flow);
        }
    }

    /// The stream of a socket.
    pub(crate) fn stream(&mut self, flow: Flow, token: u64) -> Option<&mut Stream> {
        self.streams.get_mut(&flow).filter(|stream| stream.token == token)
    }

    /// The device is to look at a stream.
    pub(crate) fn tell(&mut self, flow: Flow) {
        let told = self.streams.get_mut(&flow).is_some_and(|stream| {
            // One that is offered is looked at for that.
            !stream.known || std::mem::replace(&mut stream.news, true)
        });
        if !told {
            self.news.push_back(flow);
            self.wake = true;
        }
    }

    /// A stream is gone, and the device is told if it knows of it.
    pub(crate) fn lose(&mut self, flow: Flow, token: u64) {
        if self.stream(flow, token).is_none() {
            return;
        }
        if let Some(stream) = self.streams.remove(&flow) {
            if !stream.known {
                self.offered.retain(|other| *other != flow);
            } else if !stream.news {
                self.news.push_back(flow);
            }
            self.wake = true;
        }
    }

    /// A program wants a flow to a port of the guest's; `first` came behind its wish.
    pub(crate) fn offer(&mut self, token: u64, kind: FlowKind, guest: u32, first: &[u8]) -> Flow {
        let mut flow = Flow { host: 0, guest, kind };
        loop {
            flow.host = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % FIRST_PORT;
            if !self.streams.contains_key(&flow) {
                break;
            }
        }
        let mut stream = Stream::new(token, Phase::Offered, kind);
        stream.from_host.push(first, true);
        self.streams.insert(flow, stream);
        self.offered.push_back(flow);
        self.wake = true;
        flow
    }

    fn close(&mut self, flow: Flow, flush: bool) -> bool {
        let Some(stream) = self.streams.remove(&flow) else {
            return false;
        };
        let rest = if flush { stream.to_host } else { Lane::new(flow.kind) };
        self.tasks.push_back(Task::Close(stream.token, rest));
        true
    }

    /// The thread is to look at a stream; true when it has to be woken for that.
    fn work(&mut self, flow: Flow) -> bool {
        let idle = self
            .streams
            .get_mut(&flow)
            .is_some_and(|stream| !std::mem::replace(&mut stream.work, true));
        if idle {
            self.tasks.push_back(Task::Look(flow));
        }
        idle
    }

    /// The thread looks at it now: the socket's name.
    pub(crate) fn begin_work(&mut self, flow: Flow) -> Option<u64> {
        let stream = self.streams.get_mut(&flow)?;
        stream.work = false;
        Some(stream.token)
    }
}

/// The table.
pub(crate) struct Table {
    inner: Mutex<Inner>,
    /// Wakes the thread.
    pub(crate) event: OwnedFd,
}

impl Table {
    pub(crate) fn new(event: OwnedFd) -> Self {
        Self {
            inner: Mutex::default(),
            event,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the table, as the thread; the device is woken afterwards if it has to look.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = f(&mut inner);
        let waker = std::mem::take(&mut inner.wake).then(|| inner.waker.clone()).flatten();
        drop(inner);
        if let Some(waker) = waker {
            waker();
        }
        result
    }

    /// Wakes the thread.
    pub(crate) fn ring(&self) {
        // A counter that is full wakes it just as well.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Changes a stream, as the device, and lets the thread look at it.
    fn change(&self, flow: Flow, change: impl FnOnce(&mut Stream)) {
        let mut inner = self.lock();
        if let Some(stream) = inner.streams.get_mut(&flow) {
            change(stream);
        }
        if inner.work(flow) {
            drop(inner);
            self.ring();
        }
    }
}

impl StreamHost for Table {
    fn set_waker(&self, waker: StreamWaker) {
        self.lock().waker = Some(waker);
    }

    fn offered(&self) -> Option<Flow> {
        let mut inner = self.lock();
        let flow = inner.offered.pop_front()?;
        if let Some(stream) = inner.streams.get_mut(&flow) {
            stream.known = true;
        }
        Some(flow)
    }

    fn changed(&self) -> Option<Flow> {
        let mut inner = self.lock();
        let flow = inner.news.pop_front()?;
        if let Some(stream) = inner.streams.get_mut(&flow) {
            stream.news = false;
        }
        Some(flow)
    }

    fn status(&self, flow: Flow) -> Option<FlowStatus> {
        let inner = self.lock();
        let stream = inner.streams.get(&flow)?;
        Some(FlowStatus {
            open: stream.phase == Phase::Open,
            readable: stream.from_host.len(),
            message: stream.from_host.first(),
            delivered: stream.delivered,
            ended: stream.ended,
            deaf: stream.deaf,
        })
    }

    fn connect(&self, flow: Flow) -> bool {
        let mut inner = self.lock();
        if inner.is_full() || inner.streams.contains_key(&flow) {
            return false;
        }
        let token = inner.new_token();
        inner.sockets += 1;
        inner
            .streams
            .insert(flow, Stream::new(token, Phase::Connecting, flow.kind));
        inner.tasks.push_back(Task::Connect(flow, token));
        drop(inner);
        self.ring();
        true
    }

    fn accept(&self, flow: Flow) {
        self.change(flow, |stream| stream.phase = Phase::Open);
    }

    fn send(&self, flow: Flow, bytes: &[u8], end: bool) {
        self.change(flow, |stream| {
            if stream.deaf {
                stream.delivered += bytes.len() as u64;
            } else {
                stream.to_host.push(bytes, end);
            }
        });
    }

    fn receive(&self, flow: Flow, most: usize) -> (Vec<u8>, bool) {
        let mut inner = self.lock();
        let Some(stream) = inner.streams.get_mut(&flow) else {
            return (Vec::new(), false);
        };
        let was_full = stream.room() < FROM_HOST / 2;
        let taken = stream.from_host.take(most);
        // The thread reads on when half of the buffer is free.
        if was_full && stream.room() >= FROM_HOST / 2 && inner.work(flow) {
            drop(inner);
            self.ring();
        }
        taken
    }

    fn shut_down(&self, flow: Flow, sends: bool, takes: bool) {
        self.change(flow, |stream| {
            stream.guest_ended |= sends;
            if takes {
                stream.guest_deaf = true;
                stream.from_host.clear();
            }
        });
    }

    fn close(&self, flow: Flow, flush: bool) {
        if self.lock().close(flow, flush) {
            self.ring();
        }
    }

    fn reset(&self) {
        let mut inner = self.lock();
        let known = inner.streams.iter().filter(|(_, stream)| stream.known);
        let flows: Vec<Flow> = known.map(|(flow, _)| *flow).collect();
        for flow in flows {
            inner.close(flow, false);
        }
        inner.news.clear();
        drop(inner);
        self.ring();
    }
}
