//! Command packets of CD and DVD drives.
//!
//! Spec: MMC-5 §6 (commands), §7 (mode pages), §5 (features); SPC-4 §6.4 (INQUIRY), §6.35 (REQUEST SENSE).

use super::Protocol;
use super::Step;
use super::Transfer;
use super::optical::BLOCK;
use super::optical::MediaEvent;
use super::optical::Optical;
use super::optical::Sense;
use super::optical::sense;
use super::page;
use crate::bytes;
use crate::mode;

/// Discs with more sectors than a CD holds are DVDs: 80 minutes of 75 sectors, with some room.
const CD_BLOCKS: u64 = 450_000;
/// Bytes that a request moves at most.
const READ_MAX: u64 = 65_535 * BLOCK;
/// Profiles (MMC-5 table 88).
const PROFILE_CD: u16 = 0x0008;
const PROFILE_DVD: u16 = 0x0010;

impl Optical {
    pub(super) fn packet(&mut self, packet: &[u8]) -> Step {
        let code = bytes::at(packet, 0);
        // INQUIRY, REQUEST SENSE, GET CONFIGURATION and GET EVENT STATUS go before a unit attention (MMC-5 §4.1.6).
        if !matches!(code, 0x12 | 0x03 | 0x46 | 0x4A)
            && let Some(attention) = self.state.attention.take()
        {
            return Step::Fail(self.refuse(attention));
        }
        let result = match code {
            0x00 => self.ready().map(|()| Step::End),
            0x03 => Ok(self.request_sense(packet)),
            0x12 => self.inquiry(packet),
            0x15 | 0x55 => Self::mode_select(packet),
            0x1A | 0x5A => self.mode_sense(packet).map(Step::Send),
            0x1B => self.start_stop(packet),
            0x1E => {
                self.state.locked = bytes::at(packet, 4) & 1 != 0;
                Ok(Step::End)
            }
            0x25 => self.capacity(),
            0x28 | 0xA8 => self.read(packet),
            0x2B => self.seek(packet),
            0xBE => self.read_cd(packet),
            0x42 => self.sub_channel(packet),
            0x43 => self.toc(packet),
            0x46 => self.configuration(packet),
            0x4A => self.event_status(packet),
            0x51 => self.disc_information(packet),
            0x52 => self.track_information(packet),
            0xAD => self.disc_structure(packet),
            0xBD => Ok(self.mechanism_status(packet)),
            // SET CD SPEED, SET READ AHEAD, SYNCHRONIZE CACHE.
            0xBB | 0xA7 | 0x35 => Ok(Step::End),
            _ => Err(sense::NO_SUCH_COMMAND),
        };
        match result {
            Ok(step) => {
                if code != 0x03 {
                    self.state.sense = sense::NONE;
                }
                step
            }
            Err(why) => Step::Fail(self.refuse(why)),
        }
    }

    fn ready(&self) -> Result<(), Sense> {
        self.medium().map(|_| ()).ok_or(sense::NO_MEDIUM)
    }

    fn request_sense(&mut self, packet: &[u8]) -> Step {
        let Sense(key, code, qualifier) = match self.state.attention.take() {
            Some(attention) if self.state.sense == sense::NONE => attention,
            other => {
                self.state.attention = other;
                self.state.sense
            }
        };
        self.state.sense = sense::NONE;
        let mut data = page(18);
        bytes::put(&mut data, 0, &[0x70, 0, key]);
        bytes::put(&mut data, 7, &[10]);
        bytes::put(&mut data, 12, &[code, qualifier]);
        send(data, bytes::at(packet, 4).into())
    }

    fn inquiry(&self, packet: &[u8]) -> Result<Step, Sense> {
        if bytes::at(packet, 1) & 1 != 0 {
            return Err(sense::BAD_FIELD);
        }
        let mut data = page(36);
        // CD/DVD, removable, MMC, response format 2.
        bytes::put(&mut data, 0, &[0x05, 0x80, 0x05, 0x02, 31]);
        let (vendor, product) = self
            .identity
            .model
            .split_once(' ')
            .unwrap_or(("", &self.identity.model));
        bytes::put(&mut data, 8, &bytes::text(vendor, 8));
        bytes::put(&mut data, 16, &bytes::text(product, 16));
        bytes::put(&mut data, 32, &bytes::text(&self.identity.firmware, 4));
        Ok(send(data, bytes::be16(packet, 3).into()))
    }

    /// Pages that can be changed have no effect.
    fn mode_select(packet: &[u8]) -> Result<Step, Sense> {
        Ok(match mode::list_len(packet)? {
            0 => Step::End,
            len => Step::Take(len),
        })
    }

    /// The parameters of MODE SELECT are there.
    pub(super) fn receive(&mut self, _given: &[u8]) -> Step {
        Step::End
    }

    fn mode_sense(&self, packet: &[u8]) -> Result<Vec<u8>, Sense> {
        let medium = match (self.state.open, self.medium()) {
            (true, _) => 0x71,
            (false, None) => 0x70,
            (false, Some(_)) => 0x01,
        };
        let header = mode::Header {
            medium,
            specific: 0,
            descriptor: &[],
        };
        mode::sense(packet, header, &self.mode_pages())
    }

    /// Mode pages: read error recovery, caching, capabilities.
    fn mode_pages(&self) -> [mode::Page; 4] {
        let mut capabilities = page(20);
        // Reads CD-R, CD-RW, DVD-ROM; mode 2; tray, ejects, locks; 8 MiB/s.
        let lock = if self.state.locked { 0x2B } else { 0x29 };
        bytes::put(&mut capabilities, 0, &[0x0B, 0, 0x70, 0, lock, 0]);
        bytes::put(&mut capabilities, 6, &[0x16, 0x00, 0, 2, 0x02, 0x00, 0x16, 0x00]);
        [
            mode::Page::fixed(0x01, vec![0, 5, 0, 0, 0, 0]),
            mode::Page::fixed(0x08, vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            mode::Page::fixed(0x0E, vec![4, 0, 0, 0, 0, 75, 1, 0xFF, 2, 0xFF, 0, 0, 0, 0]),
            mode::Page::fixed(0x2A, capabilities),
        ]
    }

    fn start_stop(&mut self, packet: &[u8]) -> Result<Step, Sense> {
        match bytes::at(packet, 4) & 3 {
            2 if self.state.locked => return Err(sense::LOCKED),
            2 => {
                self.state.open = true;
                self.state.event = MediaEvent::Removal;
            }
            3 if self.state.open => {
                self.state.open = false;
                if self.medium.is_some() {
                    self.state.attention = Some(sense::CHANGED);
                    self.state.event = MediaEvent::NewMedia;
                }
            }
            _ => {}
        }
        Ok(Step::End)
    }

    fn capacity(&self) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        let last = bytes::low32(blocks.saturating_sub(1).min(u32::MAX.into()));
        let data = [last.to_be_bytes(), bytes::low32(BLOCK).to_be_bytes()].concat();
        Ok(Step::Send(data))
    }

    fn move_blocks(&self, first: u64, count: u64) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        if first + count > blocks {
            return Err(sense::OUT_OF_RANGE);
        }
        if count * BLOCK > READ_MAX {
            return Err(sense::BAD_FIELD);
        }
        if count == 0 {
            return Ok(Step::End);
        }
        Ok(Step::Move(Transfer {
            write: false,
            offset: first * BLOCK,
            len: count * BLOCK,
            protocol: Protocol::Pio {
                block: bytes::low32(BLOCK),
            },
            through: false,
        }))
    }

    fn read(&self, packet: &[u8]) -> Result<Step, Sense> {
        let count = match bytes::at(packet, 0) {
            0x28 => u64::from(bytes::be16(packet, 7)),
            _ => u64::from(bytes::be32(packet, 6)),
        };
        self.move_blocks(bytes::be32(packet, 2).into(), count)
    }

    fn seek(&self, packet: &[u8]) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        match u64::from(bytes::be32(packet, 2)) < blocks {
            true => Ok(Step::End),
            false => Err(sense::OUT_OF_RANGE),
        }
    }

    /// READ CD: user data only, of sectors of mode 1 or any mode.
    fn read_cd(&self, packet: &[u8]) -> Result<Step, Sense> {
        let (expected, what) = (bytes::at(packet, 1) >> 2 & 7, bytes::at(packet, 9));
        let [_, high, mid, low] = [0, bytes::at(packet, 6), bytes::at(packet, 7), bytes::at(packet, 8)];
        let count = u64::from(u32::from_be_bytes([0, high, mid, low]));
        match (expected, what & 0xF8) {
            (_, 0) => {
                self.ready()?;
                Ok(Step::End)
            }
            (0 | 2, 0x10) => self.move_blocks(bytes::be32(packet, 2).into(), count),
            _ => Err(sense::BAD_FIELD),
        }
    }

    /// READ SUB-CHANNEL: no sound is playing.
    fn sub_channel(&self, packet: &[u8]) -> Result<Step, Sense> {
        self.ready()?;
        let mut data = vec![0, 0x15, 0, 0];
        if bytes::at(packet, 2) & 0x40 != 0 && bytes::at(packet, 3) == 1 {
            data.extend([1, 0x14, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes::put(&mut data, 3, &[12]);
        }
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    fn toc(&self, packet: &[u8]) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        let minutes = bytes::at(packet, 1) & 2 != 0;
        let address = |block: u64| {
            if minutes {
                msf(block)
            } else {
                bytes::low32(block).to_be_bytes()
            }
        };
        // The format is in byte 2, or in the control byte of older hosts (MMC-5 §6.25.2.3).
        let format = match bytes::at(packet, 2) & 0x0F {
            0 => bytes::at(packet, 9) >> 6,
            format => format,
        };
        let start = bytes::at(packet, 6);
        let mut data = vec![0, 0, 1, 1];
        let mut track = |number: u8, block: u64| {
            data.extend([0, 0x14, number, 0]);
            data.extend(address(block));
        };
        match format {
            0 if start > 1 && start != 0xAA => return Err(sense::BAD_FIELD),
            0 => {
                if start <= 1 {
                    track(1, 0);
                }
                track(0xAA, blocks);
            }
            1 => track(1, 0),
            2 => full_toc(&mut data, blocks),
            _ => return Err(sense::BAD_FIELD),
        }
        let [high, low] = bytes::low16(data.len() as u64 - 2).to_be_bytes();
        bytes::put(&mut data, 0, &[high, low]);
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    fn profile(&self) -> u16 {
        match self.blocks() {
            None => 0,
            Some(blocks) if blocks > CD_BLOCKS => PROFILE_DVD,
            Some(_) => PROFILE_CD,
        }
    }

    fn configuration(&self, packet: &[u8]) -> Result<Step, Sense> {
        let (kind, first) = (bytes::at(packet, 1) & 3, bytes::be16(packet, 2));
        let current = self.profile();
        let is = |profile: u16| u8::from(current == profile);
        let [_, cd] = PROFILE_CD.to_be_bytes();
        let [_, dvd] = PROFILE_DVD.to_be_bytes();
        // Feature code, version and flags (bit 0 current, bit 1 persistent), data.
        let features: [(u16, u8, Vec<u8>); 7] = [
            (0x00, 0x03, vec![0, dvd, is(PROFILE_DVD), 0, 0, cd, is(PROFILE_CD), 0]),
            (0x01, 0x0B, vec![0, 0, 0, 2, 1, 0, 0, 0]),
            (0x02, 0x07, vec![1, 0, 0, 0]),
            (0x03, 0x03, vec![0x29, 0, 0, 0]),
            (0x10, u8::from(current != 0), vec![0, 0, 8, 0, 0, 1, 0, 0]),
            (0x1E, is(PROFILE_CD), vec![0, 0, 0, 0]),
            (0x1F, is(PROFILE_DVD), vec![0, 0, 0, 0]),
        ];
        let [p1, p0] = current.to_be_bytes();
        let mut data = vec![0, 0, 0, 0, 0, 0, p1, p0];
        for (code, flags, body) in features {
            let wanted = match kind {
                0 => code >= first,
                1 => code >= first && flags & 1 != 0,
                2 => code == first,
                _ => return Err(sense::BAD_FIELD),
            };
            if wanted {
                data.extend(code.to_be_bytes());
                data.extend([flags, bytes::low8(body.len() as u64)]);
                data.extend(body);
            }
        }
        let len = bytes::low32(data.len() as u64 - 4).to_be_bytes();
        bytes::put(&mut data, 0, &len);
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    fn event_status(&mut self, packet: &[u8]) -> Result<Step, Sense> {
        // Only by polling; of the classes only that of the medium.
        if bytes::at(packet, 1) & 1 == 0 {
            return Err(sense::BAD_FIELD);
        }
        const MEDIA: u8 = 4;
        let mut data = vec![0, 2, 0x80, 1 << MEDIA];
        if bytes::at(packet, 4) & 1 << MEDIA != 0 {
            let event = std::mem::replace(&mut self.state.event, MediaEvent::None);
            let there = if self.medium().is_some() { 2 } else { 0 };
            data = vec![
                0,
                6,
                MEDIA,
                1 << MEDIA,
                event as u8,
                there | u8::from(self.state.open),
                0,
                0,
            ];
        }
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    fn disc_information(&self, packet: &[u8]) -> Result<Step, Sense> {
        self.ready()?;
        let mut data = page(34);
        // Complete, last session complete; one session, one track.
        bytes::put(&mut data, 0, &[0, 32, 0x0E, 1, 1, 1, 1, 0x20]);
        bytes::put(&mut data, 16, &[0xFF; 8]);
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    fn track_information(&self, packet: &[u8]) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        let mut data = page(28);
        bytes::put(&mut data, 0, &[0, 26, 1, 1, 0, 4, 1]);
        bytes::put(&mut data, 24, &bytes::low32(blocks).to_be_bytes());
        Ok(send(data, bytes::be16(packet, 7).into()))
    }

    /// READ DISC STRUCTURE: the physical format of a DVD, and that it is not protected.
    fn disc_structure(&self, packet: &[u8]) -> Result<Step, Sense> {
        let blocks = self.blocks().ok_or(sense::NO_MEDIUM)?;
        if self.profile() != PROFILE_DVD {
            return Err(Sense(5, 0x30, 2));
        }
        let mut data = match bytes::at(packet, 7) {
            0 => page(4 + 2048),
            1 => page(8),
            _ => return Err(sense::BAD_FIELD),
        };
        if bytes::at(packet, 7) == 0 {
            let [_, s2, s1, s0] = 0x03_0000u32.to_be_bytes();
            let last = bytes::low32(blocks.saturating_sub(1)).saturating_add(0x03_0000);
            let [_, e2, e1, e0] = last.to_be_bytes();
            bytes::put(&mut data, 4, &[1, 0x02, 1, 0, 0, s2, s1, s0, 0, e2, e1, e0]);
        }
        let [high, low] = bytes::low16(data.len() as u64 - 2).to_be_bytes();
        bytes::put(&mut data, 0, &[high, low]);
        Ok(send(data, bytes::be16(packet, 8).into()))
    }

    fn mechanism_status(&self, packet: &[u8]) -> Step {
        let mut data = page(8);
        bytes::put(&mut data, 1, &[if self.state.open { 0x10 } else { 0 }]);
        send(data, bytes::be16(packet, 8).into())
    }
}

/// As many bytes as the host has room for.
fn send(mut data: Vec<u8>, limit: usize) -> Step {
    data.truncate(limit);
    match data.is_empty() {
        true => Step::End,
        false => Step::Send(data),
    }
}

/// A block's address in minutes, seconds and frames.
fn msf(block: u64) -> [u8; 4] {
    let frames = block + 150;
    [
        0,
        bytes::low8((frames / 75 / 60).min(255)),
        bytes::low8(frames / 75 % 60),
        bytes::low8(frames % 75),
    ]
}

/// The raw table of contents: first and last track, lead-out, track 1.
fn full_toc(data: &mut Vec<u8>, blocks: u64) {
    let point = |point: u8, [_, minute, second, frame]: [u8; 4]| [1, 0x14, 0, point, 0, 0, 0, 0, minute, second, frame];
    data.extend(point(0xA0, [0, 1, 0, 0]));
    data.extend(point(0xA1, [0, 1, 0, 0]));
    data.extend(point(0xA2, msf(blocks)));
    data.extend(point(1, msf(0)));
}
