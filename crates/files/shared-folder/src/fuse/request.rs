//! Requests, taken apart. What a guest sends is bytes of any kind; what comes out of here has the right shape, and nothing more is
//! known of it: numbers may be of nothing, names may be anything but empty of a zero byte.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;
use zerocopy::Immutable;

use super::wire;
use super::wire::InHeader;
use super::wire::opcode;

/// What a request asks for, with its own arguments.
#[expect(missing_docs, reason = "the protocol's names; arguments are described in `wire`")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Lookup(&'a CStr),
    /// FORGET and BATCH_FORGET: numbers, and how often each was looked up.
    Forget(Vec<(u64, u64)>),
    Getattr(wire::GetattrIn),
    Setattr(wire::SetattrIn),
    Readlink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    Mknod(wire::MknodIn, &'a CStr),
    Mkdir(wire::MkdirIn, &'a CStr),
    Unlink(&'a CStr),
    Rmdir(&'a CStr),
    /// RENAME and RENAME2: old name, new directory, new name.
    Rename(&'a CStr, wire::Rename2In, &'a CStr),
    Link(wire::LinkIn, &'a CStr),
    Open(wire::OpenIn),
    Opendir(wire::OpenIn),
    Read(wire::ReadIn),
    /// The data follow in the message.
    Write(wire::WriteIn),
    Statfs,
    Release(wire::ReleaseIn),
    Fsync(wire::FsyncIn),
    Setxattr {
        flags: u32,
        name: &'a CStr,
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: &'a CStr,
    },
    Listxattr {
        size: u32,
    },
    Removexattr(&'a CStr),
    Flush(wire::FlushIn),
    Init(wire::InitIn),
    Readdir {
        plus: bool,
        read: wire::ReadIn,
    },
    Access {
        mask: u32,
    },
    Create(wire::CreateIn, &'a CStr),
    Tmpfile(wire::CreateIn),
    Interrupt,
    Destroy,
    Fallocate(wire::FallocateIn),
    Lseek(wire::LseekIn),
    CopyFileRange(wire::CopyFileRangeIn),
    Syncfs,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it begins with.
    pub header: InHeader,
    /// What it asks for.
    pub operation: Operation<'a>,
}

/// Bytes of arguments that are looked at: of a write only those before the data.
pub(super) fn arguments(header: &InHeader) -> usize {
    /// The longest value of an extended attribute, with what is before it; a batch that forgets as many as fit.
    const MOST: usize = 68 << 10;
    if header.opcode == opcode::WRITE {
        size_of::<wire::WriteIn>()
    } else {
        MOST
    }
}

impl<'a> Request<'a> {
    /// Takes apart what follows `header`.
    ///
    /// # Errors
    /// EINVAL where that has not the operation's shape, ENOSYS where there is no such operation here.
    pub fn parse(header: InHeader, arguments: &'a [u8]) -> Result<Self, Errno> {
        let operation = operation(&header, &mut Arguments(arguments))?;
        Ok(Self { header, operation })
    }
}

/// Arguments that have not been taken.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn value<T: FromBytes + Immutable>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(name.count_bytes() + 1..).unwrap_or_default();
        Ok(name)
    }

    fn bytes(&mut self, len: u32) -> Result<&'a [u8], Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        self.0.get(..len).ok_or(Errno::INVAL)
    }

    /// Numbers that are forgotten together.
    fn batch(&mut self) -> Result<Vec<(u64, u64)>, Errno> {
        let wire::BatchForgetIn { count, .. } = self.value()?;
        // Of those that were announced and did not come nothing is said; there is no answer.
        let ones = (0..count).map_while(|_| self.value::<wire::ForgetOne>().ok());
        Ok(ones.map(|one| (one.nodeid, one.nlookup)).collect())
    }
}

fn operation<'a>(header: &InHeader, rest: &mut Arguments<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match header.opcode {
        opcode::LOOKUP => Operation::Lookup(rest.name()?),
        opcode::FORGET => {
            let wire::ForgetIn { nlookup } = rest.value()?;
            Operation::Forget(vec![(header.nodeid, nlookup)])
        }
        opcode::BATCH_FORGET => Operation::Forget(rest.batch()?),
        opcode::GETATTR => Operation::Getattr(rest.value()?),
        opcode::SETATTR => Operation::Setattr(rest.value()?),
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => Operation::Symlink {
            name: rest.name()?,
            target: rest.name()?,
        },
        opcode::MKNOD => Operation::Mknod(rest.value()?, rest.name()?),
        opcode::MKDIR => Operation::Mkdir(rest.value()?, rest.name()?),
        opcode::UNLINK => Operation::Unlink(rest.name()?),
        opcode::RMDIR => Operation::Rmdir(rest.name()?),
        opcode::RENAME => {
            let wire::RenameIn { newdir } = rest.value()?;
            let to = wire::Rename2In {
                newdir,
                ..Default::default()
            };
            Operation::Rename(rest.name()?, to, rest.name()?)
        }
        opcode::RENAME2 => {
            let to = rest.value()?;
            Operation::Rename(rest.name()?, to, rest.name()?)
        }
        opcode::LINK => Operation::Link(rest.value()?, rest.name()?),
        opcode::OPEN => Operation::Open(rest.value()?),
        opcode::OPENDIR => Operation::Opendir(rest.value()?),
        opcode::READ => Operation::Read(rest.value()?),
        opcode::WRITE => Operation::Write(rest.value()?),
        opcode::STATFS => Operation::Statfs,
        opcode::RELEASE | opcode::RELEASEDIR => Operation::Release(rest.value()?),
        opcode::FSYNC | opcode::FSYNCDIR => Operation::Fsync(rest.value()?),
        opcode::FLUSH => Operation::Flush(rest.value()?),
        opcode::INIT => Operation::Init(rest.value()?),
        opcode::READDIR | opcode::READDIRPLUS => Operation::Readdir {
            plus: header.opcode == opcode::READDIRPLUS,
            read: rest.value()?,
        },
        opcode::ACCESS => {
            let wire::AccessIn { mask, .. } = rest.value()?;
            Operation::Access { mask }
        }
        opcode::CREATE => Operation::Create(rest.value()?, rest.name()?),
        opcode::TMPFILE => Operation::Tmpfile(rest.value()?),
        opcode::INTERRUPT => Operation::Interrupt,
        opcode::DESTROY => Operation::Destroy,
        opcode::FALLOCATE => Operation::Fallocate(rest.value()?),
        opcode::LSEEK => Operation::Lseek(rest.value()?),
        opcode::COPY_FILE_RANGE => Operation::CopyFileRange(rest.value()?),
        opcode::SYNCFS => Operation::Syncfs,
        _ => attribute(header, rest)?,
    })
}

/// Requests about extended attributes.
fn attribute<'a>(header: &InHeader, rest: &mut Arguments<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match header.opcode {
        opcode::SETXATTR => {
            let wire::SetxattrIn { size, flags } = rest.value()?;
            let name = rest.name()?;
            let value = rest.bytes(size)?;
            Operation::Setxattr { flags, name, value }
        }
        opcode::GETXATTR => {
            let wire::GetxattrIn { size, .. } = rest.value()?;
            let name = rest.name()?;
            Operation::Getxattr { size, name }
        }
        opcode::LISTXATTR => {
            let wire::GetxattrIn { size, .. } = rest.value()?;
            Operation::Listxattr { size }
        }
        opcode::REMOVEXATTR => Operation::Removexattr(rest.name()?),
        _ => return Err(Errno::NOSYS),
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn header(opcode: u32) -> InHeader {
        InHeader {
            opcode,
            nodeid: 7,
            ..Default::default()
        }
    }

    fn parse(opcode: u32, arguments: &[u8]) -> Result<Operation<'_>, Errno> {
        Request::parse(header(opcode), arguments).map(|request| request.operation)
    }

    #[test]
    fn names_end_with_a_zero_byte() {
        assert_eq!(parse(opcode::LOOKUP, b"a\0"), Ok(Operation::Lookup(c"a")));
        assert_eq!(parse(opcode::LOOKUP, b"a"), Err(Errno::INVAL));
        assert_eq!(parse(opcode::LOOKUP, b""), Err(Errno::INVAL));
        let expected = Operation::Symlink {
            name: c"n",
            target: c"to",
        };
        assert_eq!(parse(opcode::SYMLINK, b"n\0to\0"), Ok(expected));
        assert_eq!(parse(opcode::SYMLINK, b"n\0to"), Err(Errno::INVAL));
    }

    #[test]
    fn both_renames_are_one() {
        let to = wire::Rename2In {
            newdir: 9,
            ..Default::default()
        };
        let old = [9u64.as_bytes(), b"a\0b\0"].concat();
        assert_eq!(parse(opcode::RENAME, &old), Ok(Operation::Rename(c"a", to, c"b")));
        let to = wire::Rename2In { flags: 1, ..to };
        let new = [to.as_bytes(), b"a\0b\0"].concat();
        assert_eq!(parse(opcode::RENAME2, &new), Ok(Operation::Rename(c"a", to, c"b")));
    }

    #[test]
    fn a_batch_forgets_what_came() {
        let count = wire::BatchForgetIn {
            count: u32::MAX,
            dummy: 0,
        };
        let bytes = [count.as_bytes(), 3u64.as_bytes(), 2u64.as_bytes(), &[1; 9]].concat();
        assert_eq!(parse(opcode::BATCH_FORGET, &bytes), Ok(Operation::Forget(vec![(3, 2)])));
        let one = parse(opcode::FORGET, 5u64.as_bytes());
        assert_eq!(one, Ok(Operation::Forget(vec![(7, 5)])));
    }

    #[test]
    fn a_value_is_as_long_as_it_says() {
        let begin = wire::SetxattrIn { size: 3, flags: 1 };
        let bytes = [begin.as_bytes(), b"user.x\0abc"].concat();
        let expected = Operation::Setxattr {
            flags: 1,
            name: c"user.x",
            value: b"abc",
        };
        assert_eq!(parse(opcode::SETXATTR, &bytes), Ok(expected));
        assert_eq!(parse(opcode::SETXATTR, &bytes[..bytes.len() - 1]), Err(Errno::INVAL));
    }

    #[test]
    fn unknown_operations_are_told() {
        for opcode in [0, 39, 48, 4096] {
            assert_eq!(parse(opcode, &[0; 64]), Err(Errno::NOSYS));
        }
    }
}
