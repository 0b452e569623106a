//! Identify data and logs of an NVMe controller and its namespaces.
//!
//! Spec: NVMe base 1.4 §5.15 (identify), §5.14 (logs).
use super::Nvme;
use super::io::MDTS;
use super::io::SECTOR;
use super::queue::status;
use crate::bytes;

const PAGE: usize = 4096;
/// Kelvins of 30 degrees Celsius.
const TEMPERATURE: u16 = 303;
/// Bytes of a unit in the SMART log: a thousand sectors.
const UNIT: u64 = 512_000;

/// Puts fields at byte offsets.
fn page(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    for (at, bytes) in fields {
        bytes::put(&mut page, *at, bytes);
    }
    page
}

impl Nvme {
    pub(super) fn identify_page(&self, what: u8, namespace: u32) -> Result<Vec<u8>, u16> {
        let last = bytes::low32(self.namespaces.len() as u64);
        match what {
            0x00 if namespace == u32::MAX => Ok(self.namespace_page(None)),
            0x00 if namespace == 0 || namespace > last => Err(status::NAMESPACE),
            0x00 => Ok(self.namespace_page(Some(namespace))),
            0x01 => Ok(self.controller_page()),
            0x02 if namespace >= 0xFFFF_FFFE => Err(status::NAMESPACE),
            0x02 => {
                let ids = namespace.saturating_add(1)..=last;
                let mut list: Vec<u8> = ids.flat_map(u32::to_le_bytes).collect();
                list.resize(PAGE, 0);
                Ok(list)
            }
            0x03 if namespace == 0 || namespace > last => Err(status::NAMESPACE),
            // Descriptors: EUI-64, NGUID.
            0x03 => {
                let (eui, nguid) = (self.eui64(namespace), self.nguid(namespace));
                Ok(page(&[
                    (0, &[1, 8, 0, 0]),
                    (4, &eui),
                    (12, &[2, 16, 0, 0]),
                    (16, &nguid),
                ]))
            }
            // What a command set adds: nothing.
            0x05 | 0x06 => Ok(page(&[])),
            _ => Err(status::FIELD),
        }
    }

    fn controller_page(&self) -> Vec<u8> {
        let identity = &self.identity;
        let (vendor, _) = super::ID;
        let count = bytes::low32(self.namespaces.len() as u64).to_le_bytes();
        let names = format!("nqn.2014-08.org.nvmexpress:oxbow:{}", identity.serial);
        #[rustfmt::skip]
        let fields: [(usize, &[u8]); 23] = [
            (0, &vendor.to_le_bytes()), (2, &vendor.to_le_bytes()),
            (4, &bytes::text(&identity.serial, 20)),
            (24, &bytes::text(&identity.model, 40)),
            (64, &bytes::text(&identity.firmware, 8)),
            (72, &[6]),                                 // RAB
            (77, &[MDTS]),
            (80, &super::VS.to_le_bytes()),
            (111, &[1]),                                // an I/O controller
            (258, &[3, 3]),                             // ACL, AERL: four each
            (260, &[3]),                                // FRMW: one slot, read-only
            (261, &[4]),                                // LPA: long logs
            (266, &343u16.to_le_bytes()), (268, &353u16.to_le_bytes()),
            (512, &[0x66, 0x44]),                       // entries of 64 and 16 bytes
            (516, &count),
            (520, &0x008Du16.to_le_bytes()),            // ONCS: compare, DSM, write zeroes, verify
            (524, &[0]),
            (525, &[1]),                                // a volatile write cache
            (526, &[0, 0, 0, 0]),
            (768, names.as_bytes()),
            (2048, &[0xC4, 0x09]),                      // power state 0: 25 W
            (2060, &[16, 0, 0, 0, 4, 0, 0, 0]),         // its latencies, us
        ];
        page(&fields)
    }

    fn namespace_page(&self, namespace: Option<u32>) -> Vec<u8> {
        // LBA format 0: sectors of 512 bytes, no metadata, the best there is.
        let format = [0, 0, 9, 0];
        let Some(namespace) = namespace else {
            return page(&[(128, &format)]);
        };
        let sectors = self
            .medium(namespace)
            .map_or(0, |medium| medium.size() / SECTOR)
            .to_le_bytes();
        let read_only = self.medium(namespace).is_some_and(|medium| medium.is_read_only());
        let (eui, nguid) = (self.eui64(namespace), self.nguid(namespace));
        page(&[
            (0, &sectors),
            (8, &sectors),
            (16, &sectors),
            // Deallocated sectors read as zeros, by write zeroes too.
            (33, &[0x09]),
            (99, &[u8::from(read_only)]),
            (104, &nguid),
            (120, &eui),
            (128, &format),
        ])
    }

    /// A number that tells namespaces of all machines apart, as far as serial numbers do (FNV-1a).
    fn eui64(&self, namespace: u32) -> [u8; 8] {
        let serial = self.identity.serial.bytes().chain(namespace.to_le_bytes());
        let hash = serial.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
        // VirtualBox's range of locally administered numbers.
        [0x0A, 0x00, 0x27, a, b, c, d, e]
    }

    fn nguid(&self, namespace: u32) -> [u8; 16] {
        let mut nguid = [0; 16];
        bytes::put(&mut nguid, 0, &self.eui64(namespace | 1 << 31));
        bytes::put(&mut nguid, 8, &self.eui64(namespace));
        nguid
    }

    /// SMART: a controller in good health, and what was read and written.
    pub(super) fn smart_log(&self) -> Vec<u8> {
        let counters = &self.state.counters;
        let mut log = vec![0; 512];
        bytes::put(&mut log, 1, &TEMPERATURE.to_le_bytes());
        bytes::put(&mut log, 3, &[100, 10, 0]);
        let numbers = [
            counters.read_bytes.div_ceil(UNIT),
            counters.written_bytes.div_ceil(UNIT),
            counters.reads,
            counters.writes,
            0,
            1,
        ];
        for (index, number) in numbers.iter().enumerate() {
            bytes::put(&mut log, 32 + index * 16, &number.to_le_bytes());
        }
        log
    }

    pub(super) fn firmware_log(&self) -> Vec<u8> {
        let mut log = vec![0; 512];
        bytes::put(&mut log, 0, &[1]);
        bytes::put(&mut log, 8, &bytes::text(&self.identity.firmware, 8));
        log
    }
}
