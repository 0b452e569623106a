//! What local APICs, I/O APICs and message-signalled interrupts say to each other.
//!
//! Spec: SDM vol. 3 §11.6.1 (interrupt command register), §11.11 (message format).

/// How an interrupt is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to every processor of the destination.
    Fixed,
    /// The vector, to the processor of the destination with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Not defined in messages; nothing is delivered.
    Reserved,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up; the vector is the page where execution starts.
    Sipi,
    /// The vector comes from the 8259.
    ExtInt,
}

impl DeliveryMode {
    /// The mode with this three-bit encoding; higher bits are ignored.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Sipi,
            _ => Self::ExtInt,
        }
    }
}

/// An interrupt on its way to a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    pub mode: DeliveryMode,
    /// Level triggered: its EOI is broadcast.
    pub level_triggered: bool,
    /// False for a de-assertion, which no local APIC acts upon.
    pub assert: bool,
}

/// Destination by relation to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field says.
    None,
    /// The sender.
    Myself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

impl Shorthand {
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::All,
            _ => Self::Others,
        }
    }
}

/// An interrupt that a processor sends to processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// What is delivered.
    pub interrupt: Interrupt,
    /// Destination: 8 bits from an xAPIC, 32 from an x2APIC.
    pub dest: u32,
    /// The destination is logical.
    pub logical: bool,
    /// Takes precedence over the destination.
    pub shorthand: Shorthand,
}

/// What a local APIC wants done to other chips. The board carries it out when the APIC's lock is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Interrupts to other processors.
    pub ipis: Vec<Ipi>,
    /// Vectors whose end is to be told to the I/O APICs.
    pub eois: Vec<u8>,
}
