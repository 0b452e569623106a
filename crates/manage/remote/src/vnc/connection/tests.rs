//! A client written for tests against a running server: what it draws must be what the screen shows.

use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use display::ScreenSource;
use input::Event;
use input::InputSink;
use input::Key;

use super::*;
use crate::vnc::VncAddress;
use crate::vnc::VncConfig;
use crate::vnc::VncServer;
use crate::vnc::encode::decode::Decoder;
use crate::vnc::encode::decode::Source;

/// A screen that a test draws on.
#[derive(Clone, Default)]
struct Canvas(Arc<Mutex<(Surface, Option<Cursor>)>>);

impl Canvas {
    fn draw(&self, width: u32, height: u32, pixel: impl Fn(u32, u32) -> u32) -> Surface {
        let mut canvas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        canvas.0.resize(width, height);
        for y in 0..height {
            for (x, to) in (0..).zip(canvas.0.row_mut(y)) {
                *to = pixel(x, y);
            }
        }
        canvas.0.clone()
    }
}

impl ScreenSource for Canvas {
    fn refresh(&mut self, framebuffer: &mut Framebuffer) {
        let canvas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        framebuffer.update_with(|surface| {
            surface.resize(canvas.0.width(), canvas.0.height());
            surface.paste(0, 0, &canvas.0);
        });
        framebuffer.set_cursor(canvas.1.clone());
    }
}

#[derive(Default)]
struct Keys(Mutex<Vec<Event>>);

impl InputSink for Keys {
    fn input(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
    fn leds(&self) -> Option<u8> {
        Some(5)
    }
}

struct Bench {
    canvas: Canvas,
    keys: Arc<Keys>,
    server: VncServer,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(canvas: Canvas) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(Keys::default());
        let address = VncAddress::Unix(dir.path().join("vnc"));
        let config = VncConfig {
            name: "test".to_owned(),
            ..VncConfig::default()
        };
        let server = VncServer::start(&address, config, Box::new(canvas.clone()), keys.clone()).unwrap();
        Self {
            canvas,
            keys,
            server,
            _dir: dir,
        }
    }

    fn client(&self, encodings: &[i32]) -> Client {
        let VncAddress::Unix(path) = self.server.address() else {
            panic!("a socket in the file system was asked for");
        };
        Client::new(UnixStream::connect(path).unwrap(), encodings)
    }
}

/// What came in an update besides pixels.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    numbers: Vec<i32>,
    told_size: Option<(u16, u16)>,
    leds: Option<u8>,
}

struct Client {
    socket: UnixStream,
    screen: Surface,
    decoder: Decoder,
}

impl Source for UnixStream {
    fn octets(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Client {
    fn new(mut socket: UnixStream, encodings: &[i32]) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        socket.octets(12);
        socket.write_all(b"RFB 003.008\n").unwrap();
        assert_eq!(socket.octets(2), [1, 1]);
        socket.write_all(&[1]).unwrap();
        assert_eq!(socket.u32(), 0);
        socket.write_all(&[1]).unwrap();
        let (width, height) = (socket.u16().into(), socket.u16().into());
        assert_eq!(socket.octets(16), PixelFormat::OURS.to_bytes());
        let len = socket.u32() as usize;
        assert_eq!(socket.octets(len), b"test");
        let mut message = vec![2, 0];
        message.extend((encodings.len() as u16).to_be_bytes());
        encodings
            .iter()
            .for_each(|encoding| message.extend(encoding.to_be_bytes()));
        socket.write_all(&message).unwrap();
        Self {
            socket,
            screen: Surface::new(width, height),
            decoder: Decoder::new(PixelFormat::OURS),
        }
    }

    fn ask(&mut self, incremental: bool) {
        let mut message = vec![3, u8::from(incremental), 0, 0, 0, 0];
        message.extend((self.screen.width() as u16).to_be_bytes());
        message.extend((self.screen.height() as u16).to_be_bytes());
        self.socket.write_all(&message).unwrap();
    }

    fn update(&mut self) -> News {
        let mut news = News::default();
        assert_eq!(self.socket.octets(2), [0, 0]);
        for _ in 0..self.socket.u16() {
            let [x, y, width, height] = [(); 4].map(|()| u32::from(self.socket.u16()));
            let rect = Rect::new(x, y, width, height);
            let encoding = self.socket.u32().cast_signed();
            news.numbers.push(encoding);
            match encoding {
                number::COPY_RECT => {
                    let (from_x, from_y) = (self.socket.u16(), self.socket.u16());
                    let from = Rect::new(from_x.into(), from_y.into(), width, height);
                    let part = self.screen.copy_out(&from);
                    self.screen.paste(x, y, &part);
                }
                number::EXTENDED_DESKTOP_SIZE => {
                    let screens = self.socket.octets(4);
                    assert_eq!(screens, [1, 0, 0, 0]);
                    self.socket.octets(16);
                    self.screen = Surface::new(width, height);
                    news.told_size = Some((x as u16, y as u16));
                }
                number::DESKTOP_SIZE => self.screen = Surface::new(width, height),
                number::CURSOR => {
                    self.socket
                        .octets((width * height * 4 + width.div_ceil(8) * height) as usize);
                }
                number::QEMU_EXTENDED_KEY => {}
                number::QEMU_LED => news.leds = Some(self.socket.u8()),
                _ => self.decoder.rect(&mut self.socket, &rect, encoding, &mut self.screen),
            }
        }
        news
    }

    fn see(&mut self, wanted: &Surface) {
        let end = Instant::now() + Duration::from_secs(120);
        while &self.screen != wanted {
            assert!(Instant::now() < end, "the picture never came");
            self.ask(true);
            self.update();
        }
    }
}

fn noise(x: u32, y: u32) -> u32 {
    (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(2_246_822_519) >> 8
}

#[test]
fn clients_of_all_encodings_see_what_is_drawn() {
    let canvas = Canvas::default();
    canvas.draw(320, 200, noise);
    let bench = Bench::new(canvas);
    let encodings = [number::RAW, number::HEXTILE, number::ZRLE, number::TIGHT];
    let mut clients: Vec<Client> = encodings
        .iter()
        .map(|encoding| bench.client(&[number::COPY_RECT, *encoding, number::DESKTOP_SIZE]))
        .collect();
    for step in 0..9u32 {
        let (width, height) = if step < 6 { (320, 200) } else { (150, 333) };
        let wanted = bench.canvas.draw(width, height, |x, y| match step % 3 {
            0 => noise(x, y + step * 8),
            1 => noise(x / 20, y / 20 + step),
            _ => noise(x, y + (step - 2) * 8 + 16),
        });
        for client in &mut clients {
            client.see(&wanted);
        }
    }
    assert_eq!(bench.server.clients(), 4);
}

#[test]
fn scrolling_is_sent_as_a_copy() {
    let canvas = Canvas::default();
    let first = canvas.draw(320, 200, noise);
    let bench = Bench::new(canvas);
    let mut client = bench.client(&[number::COPY_RECT, number::ZRLE]);
    client.see(&first);
    let wanted = bench.canvas.draw(320, 200, |x, y| noise(x, y + 16));
    client.ask(true);
    let news = client.update();
    assert_eq!(news.numbers[0], number::COPY_RECT);
    assert_eq!(client.screen, wanted);
}

#[test]
fn extensions_are_announced_and_resizing_is_refused() {
    let canvas = Canvas::default();
    canvas.draw(64, 64, noise);
    let bench = Bench::new(canvas);
    let mut client = bench.client(&[
        number::TIGHT,
        number::EXTENDED_DESKTOP_SIZE,
        number::QEMU_EXTENDED_KEY,
        number::QEMU_LED,
        number::CURSOR,
    ]);
    client.ask(false);
    let news = client.update();
    assert_eq!(news.told_size, Some((0, 0)));
    assert!(news.numbers.contains(&number::QEMU_EXTENDED_KEY));
    client.socket.write_all(&[251, 0, 4, 0, 3, 0, 0, 0]).unwrap();
    client.ask(true);
    assert_eq!(client.update().told_size, Some((1, 1)));
    // Lights and pointer come with what else there is.
    bench.canvas.0.lock().unwrap().1 = Some(Cursor {
        picture: Surface::new(9, 3),
        mask: vec![true; 27],
        hot: (1, 1),
    });
    let mut all = Vec::new();
    let mut leds = None;
    while !all.contains(&number::CURSOR) || leds.is_none() {
        client.ask(true);
        let news = client.update();
        all.extend(news.numbers);
        leds = leds.or(news.leds);
    }
    assert_eq!(leds, Some(5));
}

#[test]
fn client_that_cannot_be_resized_sees_what_fits() {
    let canvas = Canvas::default();
    let first = canvas.draw(100, 50, noise);
    let bench = Bench::new(canvas);
    let mut client = bench.client(&[number::RAW]);
    client.see(&first);
    let other = bench.canvas.draw(40, 90, noise);
    let mut wanted = Surface::new(100, 50);
    wanted.paste(0, 0, &other);
    client.see(&wanted);
}

#[test]
fn malformed_message_ends_that_client_alone() {
    let canvas = Canvas::default();
    let first = canvas.draw(100, 50, noise);
    let bench = Bench::new(canvas);
    let mut good = bench.client(&[number::RAW]);
    let mut bad = bench.client(&[number::RAW]);
    bad.socket.write_all(&[77]).unwrap();
    let mut rest = Vec::new();
    bad.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    good.see(&first);
}

#[test]
fn slow_client_gets_fewer_updates_and_holds_up_nobody() {
    let canvas = Canvas::default();
    canvas.draw(600, 500, noise);
    let bench = Bench::new(canvas);
    let mut slow = bench.client(&[number::RAW]);
    let mut fast = bench.client(&[number::ZRLE]);
    // More than the socket takes, and none of it is read for now.
    slow.ask(false);
    let mut last = Surface::default();
    for step in 1..6u32 {
        last = bench.canvas.draw(600, 500, |x, y| noise(x / 8 + step, y / 8));
        fast.see(&last);
        slow.ask(true);
    }
    slow.update();
    slow.see(&last);
}

#[test]
fn input_arrives_and_clipboard_text_is_skipped() {
    let canvas = Canvas::default();
    canvas.draw(100, 50, noise);
    let bench = Bench::new(canvas);
    let mut client = bench.client(&[number::RAW]);
    let mut message = vec![6, 0, 0, 0, 0, 0, 0x20, 0];
    message.extend([4; 0x2000]);
    message.extend([4, 1, 0, 0, 0, 0, 0xFF, 0x0D, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1C]);
    for part in message.chunks(1000) {
        client.socket.write_all(part).unwrap();
    }
    client.ask(false);
    client.update();
    let event = |down| Event::Key { key: Key::ENTER, down };
    assert_eq!(*bench.keys.0.lock().unwrap(), [event(true), event(false)]);
}

#[test]
fn server_ends_while_clients_are_connected() {
    let canvas = Canvas::default();
    canvas.draw(100, 50, noise);
    let bench = Bench::new(canvas);
    let mut client = bench.client(&[number::RAW]);
    let VncAddress::Unix(path) = bench.server.address().clone() else {
        panic!("a socket in the file system was asked for");
    };
    drop(bench.server);
    assert!(matches!(client.socket.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(!path.exists());
}
