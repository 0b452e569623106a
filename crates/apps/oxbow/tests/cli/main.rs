//! The command line as its users see it: exit statuses, messages, streams, and the terminal.

mod control;
mod disk;
mod engines;
mod guest;
mod misuse;
mod run;
mod terminal;
