//! Execution of the commands that move data: by DMA at once, through the FIFO sector by sector.
//!
//! Spec: Intel 290166-007 (82077AA) §5.1 (data transfer commands), table 5-5 (results), §6 (status).

use super::Fdc;
use super::Phase;
use super::Position;
use super::drive;
use super::drive::SECTOR;
use super::spec;
use super::spec::code;
use super::spec::st0;
use super::spec::st1;
use super::spec::st2;

/// ST0 to ST2 of what went wrong.
type Failure = (u8, u8, u8);

impl Fdc {
    /// Whether the drive has a medium that can be read at the present data rate; else the status bytes.
    fn ready(&mut self, number: u8) -> Result<drive::Format, Failure> {
        let rate = self.state.rate;
        let Some(format) = self.drive(number).and_then(|drive| drive.format()) else {
            return Err((st0::NOT_READY, st1::NO_MARK, 0));
        };
        if format.rates >> rate & 1 == 0 || !self.opcode().mfm() {
            return Err((0, st1::NO_MARK, 0));
        }
        Ok(format)
    }

    /// Whether the sector at the present position is under the head.
    fn find(&mut self, number: u8, head: u8) -> Result<(), Failure> {
        let format = self.ready(number)?;
        let position = self.state.position;
        let cylinder = self.drive(number).map_or(0, |drive| drive.cylinder);
        if position.cylinder != cylinder || cylinder >= format.cylinders {
            return Err((0, st1::NO_DATA, st2::WRONG_CYLINDER));
        }
        let exists = (1..=format.sectors).contains(&position.sector) && head < format.sides;
        if !exists || position.head != head || position.size != 2 {
            return Err((0, st1::NO_DATA, 0));
        }
        Ok(())
    }

    /// The result of a command that moves data; an error makes it abnormal.
    fn end(&mut self, outcome: Result<(), Failure>) {
        let (number, head) = self.unit();
        let (zero, one, two) = match outcome {
            Ok(()) => (0, 0, 0),
            Err((zero, one, two)) => (zero | st0::ABNORMAL, one, two),
        };
        let Position {
            cylinder,
            head: id_head,
            sector,
            size,
        } = self.state.position;
        let status = zero | head << 2 | number;
        self.finish(&[status, one, two, cylinder, id_head, sector, size]);
        self.interrupt(true);
    }

    pub(super) fn read_id(&mut self) {
        let (number, head) = self.unit();
        let found = self.ready(number);
        let cylinder = self.drive(number).map_or(0, |drive| drive.cylinder);
        self.state.position = Position {
            cylinder,
            head,
            sector: 1,
            size: 2,
        };
        let outcome = found.and_then(|format| match head < format.sides && cylinder < format.cylinders {
            true => Ok(()),
            false => Err((0, st1::NO_MARK, 0)),
        });
        self.end(outcome);
    }

    /// Reads, writes and verifies: by DMA at once, without it sector by sector through the FIFO.
    pub(super) fn transfer(&mut self) {
        self.state.position = Position {
            cylinder: self.argument(2),
            head: self.argument(3),
            sector: self.argument(4),
            size: self.argument(5),
        };
        if self.opcode().code() == code::READ_TRACK {
            self.state.position.sector = 1;
        }
        let by_fifo = self.state.specify.get(1).is_some_and(|byte| byte & spec::ND != 0);
        if by_fifo && self.opcode().code() != code::VERIFY {
            return self.start_by_fifo();
        }
        let outcome = self.transfer_by_dma();
        self.end(outcome);
    }

    fn writes(&self) -> bool {
        matches!(self.opcode().code(), code::WRITE | code::WRITE_DELETED)
    }

    /// A sector under the head into the buffer, or the buffer into it.
    fn sector(&mut self, buffer: &mut [u8; SECTOR], write: bool) -> Result<(), Failure> {
        let (number, _) = self.unit();
        // Both sides of a cylinder follow each other under MT.
        let side = self.state.position.head & 1;
        self.find(number, side)?;
        let sector = self.state.position.sector;
        let drive = self.drive(number).ok_or((st0::NOT_READY, 0, 0))?;
        if write && drive.is_read_only() {
            return Err((0, st1::NOT_WRITABLE, 0));
        }
        let done = match write {
            true => drive.write(side, sector, buffer),
            false => drive.read(side, sector, buffer),
        };
        done.map_err(|_| (0, st1::DATA_ERROR, 0))
    }

    /// To the next sector. False at the end of the track, or of the cylinder under MT.
    fn advance(&mut self) -> bool {
        let last = self.argument(6);
        let multi_track = self.opcode().multi_track();
        let position = &mut self.state.position;
        if position.sector != last {
            position.sector = position.sector.wrapping_add(1);
            return true;
        }
        position.sector = 1;
        if multi_track {
            position.head ^= 1;
            if position.head & 1 == 1 {
                return true;
            }
        }
        position.cylinder = position.cylinder.wrapping_add(1);
        false
    }

    fn transfer_by_dma(&mut self) -> Result<(), Failure> {
        let (code, mut buffer) = (self.opcode().code(), [0; SECTOR]);
        // A sector number that is never reached ends the loop where the format does: with no data.
        loop {
            let terminal = if code == code::VERIFY {
                self.sector(&mut buffer, false)?;
                false
            } else if self.writes() {
                // Nothing is taken from memory that cannot be written.
                let (number, side) = (self.unit().0, self.state.position.head & 1);
                self.find(number, side)?;
                if self.drive(number).is_some_and(|drive| drive.is_read_only()) {
                    return Err((0, st1::NOT_WRITABLE, 0));
                }
                let taken = self.dma.take(&mut buffer);
                if taken.bytes == 0 {
                    return Err((0, st1::OVERRUN, 0));
                }
                self.sector(&mut buffer, true)?;
                taken.terminal
            } else {
                self.sector(&mut buffer, false)?;
                let given = self.dma.give(&buffer);
                if given.bytes < SECTOR && !given.terminal {
                    return Err((0, st1::OVERRUN, 0));
                }
                given.terminal
            };
            let more = self.advance();
            match (terminal, more) {
                (true, _) => return Ok(()),
                (false, true) => {}
                (false, false) if code == code::VERIFY => return Ok(()),
                (false, false) => return Err((0, st1::END, 0)),
            }
        }
    }

    fn start_by_fifo(&mut self) {
        let to_host = !self.writes();
        let mut buffer = [0; SECTOR];
        let (number, side) = (self.unit().0, self.state.position.head & 1);
        let outcome = if to_host {
            self.sector(&mut buffer, false)
        } else if self.drive(number).is_some_and(|drive| drive.is_read_only()) {
            Err((0, st1::NOT_WRITABLE, 0))
        } else {
            self.find(number, side)
        };
        if outcome.is_err() {
            return self.end(outcome);
        }
        self.state.sector = buffer.to_vec();
        self.state.passed = 0;
        self.state.phase = Phase::Fifo { to_host };
        self.interrupt(true);
    }

    /// A sector has passed to the host.
    pub(super) fn next_by_fifo(&mut self) {
        self.interrupt(false);
        // There is no terminal count without DMA: the last sector is the end, and an error to say so.
        if self.advance() {
            self.start_by_fifo();
        } else {
            self.end(Err((0, st1::END, 0)));
        }
    }

    /// A sector has come from the host.
    pub(super) fn write_by_fifo(&mut self) {
        self.interrupt(false);
        let mut buffer = [0; SECTOR];
        for (to, from) in buffer.iter_mut().zip(&self.state.sector) {
            *to = *from;
        }
        match self.sector(&mut buffer, true) {
            Ok(()) => self.next_by_fifo(),
            error => self.end(error),
        }
    }

    /// Fills a track: for each sector the host gives an address of four bytes.
    pub(super) fn format(&mut self) {
        let (number, head) = self.unit();
        let (size, count, fill) = (self.argument(2), self.argument(3), self.argument(5));
        let mut outcome = self.ready(number).map(|_| ());
        for _ in 0..count {
            if outcome.is_err() {
                break;
            }
            let mut id = [0; 4];
            let taken = self.dma.take(&mut id);
            if taken.bytes < id.len() {
                outcome = Err((0, st1::OVERRUN, 0));
                break;
            }
            let [cylinder, id_head, sector, _] = id;
            self.state.position = Position {
                cylinder,
                head: id_head,
                sector,
                size,
            };
            outcome = self
                .find(number, head)
                .and_then(|()| self.sector(&mut [fill; SECTOR], true));
            if taken.terminal {
                break;
            }
        }
        self.end(outcome);
    }
}
