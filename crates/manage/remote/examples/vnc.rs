//! A VNC server without a machine: a test picture on which what is typed and where the pointer is can be seen.
//!
//! `cargo run --example vnc -- :1 [PASSWORD]`. Prints what keyboard and mouse do; ends with its standard input.

use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use display::Framebuffer;
use display::ScreenSource;
use input::Event;
use input::InputSink;
use remote::vnc::Password;
use remote::vnc::VncConfig;
use remote::vnc::VncServer;

const WIDTH: u32 = 800;
const HEIGHT: u32 = 600;

/// Squares on a gradient, one for each key that was pressed.
#[derive(Default)]
struct Board {
    keys: Mutex<Vec<u16>>,
}

impl InputSink for Board {
    fn input(&self, event: Event) {
        println!("{event:?}");
        if let Event::Key { key, down: true } = event {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.push(key.code());
        }
    }
}

struct Picture(Arc<Board>);

impl ScreenSource for Picture {
    fn refresh(&mut self, framebuffer: &mut Framebuffer) {
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        framebuffer.update_with(|surface| {
            surface.resize(WIDTH, HEIGHT);
            for y in 0..HEIGHT {
                for (x, pixel) in (0..).zip(surface.row_mut(y)) {
                    let square = (y / 40 * (WIDTH / 40) + x / 40) as usize;
                    *pixel = match keys.get(square) {
                        Some(key) => u32::from(*key).wrapping_mul(0x3_0507) & 0xFF_FFFF,
                        None => (x * 255 / WIDTH) << 16 | (y * 255 / HEIGHT) << 8 | (x ^ y) & 0xFF,
                    };
                }
            }
        });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| ":0".to_owned()).parse()?;
    let password = arguments.next().map(|text| Password::new(&text)).transpose()?;
    let board = Arc::new(Board::default());
    let config = VncConfig {
        name: "test picture".to_owned(),
        password,
        ..VncConfig::default()
    };
    let server = VncServer::start(&address, config, Box::new(Picture(Arc::clone(&board))), board)?;
    println!("listening at {}", server.address());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
