//! The part of Python's pickle machine that makes tensors, numbers, texts and what holds them.
//!
//! A pickle is a program for a machine with a stack and a memo. Its instructions can name any function of any Python
//! module and have it called. Here a few names are known, none of which calls anything ([`Global`]). Another name, or
//! an instruction that `torch.save` does not write for such values, ends the reading. An instruction makes at most one
//! object, of about a hundred bytes, and objects are shared, not copied.

use std::collections::HashMap;

use super::super::floats::Float;
use super::error::TorchError;

/// The longest program that is read, in bytes.
const MOST_BYTES: usize = 1 << 18;

/// Axes of a tensor, at most.
const MOST_AXES: usize = 8;

/// A name that a program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `torch._utils._rebuild_tensor_v2`: a tensor on a storage.
    Tensor,
    /// `torch._utils._rebuild_parameter`: a tensor that is trained.
    Parameter,
    /// `collections.OrderedDict`.
    Dictionary,
    /// `torch.FloatStorage` and the like: the type of a storage.
    Storage(Float),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_parameter") => Self::Parameter,
            ("collections", "OrderedDict") => Self::Dictionary,
            ("torch", "HalfStorage") => Self::Storage(Float::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Float::BF16),
            ("torch", "FloatStorage") => Self::Storage(Float::F32),
            ("torch", "DoubleStorage") => Self::Storage(Float::F64),
            _ => return None,
        })
    }
}

/// The numbers that tensors look at: an entry of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// The last part of the entry's name.
    pub key: &'a str,
    /// The type of the numbers.
    pub float: Float,
    /// How many there are.
    pub count: usize,
}

/// A look at a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// The storage.
    pub storage: Storage<'a>,
    /// The first number.
    pub offset: usize,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Numbers from one to the next along each axis.
    pub strides: Vec<usize>,
}

/// An object, by its place among all that the program made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(usize);

/// What a program made. Parts are told by place, so an object may stand in several, and in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object<'a> {
    /// `None`, a truth value, a floating-point number or a whole one of more than 4 bytes; which one matters to nobody.
    Plain,
    /// A whole number.
    Integer(i64),
    /// A text.
    Text(&'a str),
    /// A list or tuple.
    List(Vec<Id>),
    /// A dictionary, in the order of its making.
    Dictionary(Vec<(Id, Id)>),
    /// A name.
    Global(Global),
    /// A storage.
    Storage(Storage<'a>),
    /// A tensor.
    Tensor(Tensor<'a>),
}

/// All that a program made.
#[derive(Debug)]
pub struct Objects<'a> {
    objects: Vec<Object<'a>>,
    /// The object that the program returns.
    pub root: Id,
}

impl<'a> Objects<'a> {
    /// An object.
    pub fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id.0]
    }
}

/// Runs a program to its end.
///
/// # Errors
/// [`TorchError::Global`], [`TorchError::Opcode`], [`TorchError::Pickle`] and [`TorchError::Large`].
pub fn run(program: &[u8]) -> Result<Objects<'_>, TorchError> {
    if program.len() > MOST_BYTES {
        return Err(TorchError::Large);
    }
    let mut machine = Machine { rest: program, ..Machine::default() };
    loop {
        match machine.number(1)? as u8 {
            b'.' => return Ok(Objects { root: machine.pop()?, objects: machine.objects }), // STOP
            opcode => machine.step(opcode)?,
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which parts begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Follows an instruction that makes an object, or else [`Self::handle`]s objects. The comments name instructions
    /// as `pickletools` does.
    fn step(&mut self, opcode: u8) -> Result<(), TorchError> {
        let made = match opcode {
            b'N' | 0x88 | 0x89 => Object::Plain,             // NONE, NEWTRUE, NEWFALSE
            b'G' => self.plain(8)?,                          // BINFLOAT
            0x8a => self.long()?,                            // LONG1
            b'K' => Object::Integer(self.number(1)?.into()), // BININT1
            b'M' => Object::Integer(self.number(2)?.into()), // BININT2
            b'J' => Object::Integer(self.number(4)?.cast_signed().into()), // BININT
            b'X' => self.text()?,                            // BINUNICODE
            b']' | b')' => Object::List(vec![]),             // EMPTY_LIST, EMPTY_TUPLE
            b't' => Object::List(self.since_mark()?),        // TUPLE
            0x85..=0x87 => Object::List(self.last(opcode - 0x84)?), // TUPLE1, TUPLE2, TUPLE3
            b'}' => Object::Dictionary(vec![]),              // EMPTY_DICT
            b'c' => self.global()?,                          // GLOBAL
            b'Q' => self.storage()?,                         // BINPERSID
            _ => return self.handle(opcode),
        };
        self.push(made);
        Ok(())
    }

    fn handle(&mut self, opcode: u8) -> Result<(), TorchError> {
        match opcode {
            0x80 => drop(self.number(1)?),                                   // PROTO
            b'(' => self.marks.push(self.stack.len()),                       // MARK
            b'a' => self.last(1).and_then(|parts| self.append(parts))?,      // APPEND
            b'e' => self.since_mark().and_then(|parts| self.append(parts))?, // APPENDS
            b's' => self.last(2).and_then(|parts| self.set(&parts))?,        // SETITEM
            b'u' => self.since_mark().and_then(|parts| self.set(&parts))?,   // SETITEMS
            b'q' => self.memorise(1)?,                                       // BINPUT
            b'r' => self.memorise(4)?,                                       // LONG_BINPUT
            b'h' => self.recall(1)?,                                         // BINGET
            b'j' => self.recall(4)?,                                         // LONG_BINGET
            b'R' => self.reduce()?,                                          // REDUCE
            b'b' => self.build()?,                                           // BUILD
            _ => return Err(TorchError::Opcode { opcode }),
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], TorchError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TorchError::Pickle)?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned number of at most 4 bytes, the lowest first.
    fn number(&mut self, length: usize) -> Result<u32, TorchError> {
        Ok(self.take(length)?.iter().rev().fold(0, |above, byte| above << 8 | u32::from(*byte)))
    }

    /// A number of this many bytes that matters to nobody.
    fn plain(&mut self, length: usize) -> Result<Object<'a>, TorchError> {
        self.take(length).map(|_| Object::Plain)
    }

    /// A whole number that tells its own length.
    fn long(&mut self) -> Result<Object<'a>, TorchError> {
        let length = self.number(1)?;
        self.plain(length as usize)
    }

    fn text(&mut self) -> Result<Object<'a>, TorchError> {
        let length = self.number(4)?;
        let text = std::str::from_utf8(self.take(length as usize)?);
        text.map(Object::Text).map_err(|_| TorchError::Pickle)
    }

    fn line(&mut self) -> Result<&'a str, TorchError> {
        let length = self.rest.iter().position(|byte| *byte == b'\n').ok_or(TorchError::Pickle)?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| TorchError::Pickle)?;
        self.take(1)?;
        Ok(line)
    }

    fn global(&mut self) -> Result<Object<'a>, TorchError> {
        let (module, name) = (self.line()?, self.line()?);
        let unknown = || TorchError::Global { name: super::shown(&format!("{module}.{name}")) };
        Global::named(module, name).map(Object::Global).ok_or_else(unknown)
    }

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(Id(self.objects.len()));
        self.objects.push(object);
    }

    /// Takes the last objects of the stack, none of them from before the last mark.
    fn last(&mut self, count: u8) -> Result<Vec<Id>, TorchError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(usize::from(count)).filter(|start| *start >= floor);
        Ok(self.stack.split_off(start.ok_or(TorchError::Pickle)?))
    }

    fn pop(&mut self) -> Result<Id, TorchError> {
        self.last(1).map(|last| last[0])
    }

    /// Takes what came since the last mark, and the mark.
    fn since_mark(&mut self) -> Result<Vec<Id>, TorchError> {
        let mark = self.marks.pop().ok_or(TorchError::Pickle)?;
        Ok(self.stack.split_off(mark))
    }

    /// The object on top of the stack, which stays there.
    fn top(&mut self) -> Result<&mut Object<'a>, TorchError> {
        let top = self.stack.last().copied().ok_or(TorchError::Pickle)?;
        Ok(&mut self.objects[top.0])
    }

    fn append(&mut self, parts: Vec<Id>) -> Result<(), TorchError> {
        let Object::List(list) = self.top()? else { return Err(TorchError::Pickle) };
        list.extend(parts);
        Ok(())
    }

    /// Sets keys and values, which alternate.
    fn set(&mut self, parts: &[Id]) -> Result<(), TorchError> {
        let (pairs, []) = parts.as_chunks() else { return Err(TorchError::Pickle) };
        let Object::Dictionary(entries) = self.top()? else { return Err(TorchError::Pickle) };
        entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn memorise(&mut self, length: usize) -> Result<(), TorchError> {
        let place = self.number(length)?;
        let top = self.stack.last().copied().ok_or(TorchError::Pickle)?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, length: usize) -> Result<(), TorchError> {
        let place = self.number(length)?;
        self.stack.push(self.memo.get(&place).copied().ok_or(TorchError::Pickle)?);
        Ok(())
    }

    /// The storage that `("storage", type, key, device, count)` names.
    fn storage(&mut self) -> Result<Object<'a>, TorchError> {
        let id = self.pop()?;
        let &[_storage, kind, key, _device, count] = self.parts(id)? else { return Err(TorchError::Pickle) };
        match (&self.objects[kind.0], &self.objects[key.0]) {
            (&Object::Global(Global::Storage(float)), &Object::Text(key)) => {
                Ok(Object::Storage(Storage { key, float, count: self.size(count)? }))
            }
            _ => Err(TorchError::Pickle),
        }
    }

    /// What a call of a name with arguments returns.
    fn reduce(&mut self) -> Result<(), TorchError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Object::Global(function) = self.objects[function.0] else { return Err(TorchError::Pickle) };
        match (function, self.parts(arguments)?) {
            (Global::Tensor, &[storage, offset, shape, strides, _gradient, _hooks]) => {
                let tensor = self.tensor(storage, offset, shape, strides)?;
                self.push(Object::Tensor(tensor));
            }
            (Global::Parameter, &[tensor, _gradient, _hooks]) => self.stack.push(tensor),
            (Global::Dictionary, []) => self.push(Object::Dictionary(vec![])),
            _ => return Err(TorchError::Pickle),
        }
        Ok(())
    }

    /// Takes the attributes of a dictionary, which those of modules' weights have.
    fn build(&mut self) -> Result<(), TorchError> {
        self.pop()?;
        if matches!(self.top()?, Object::Dictionary(_)) { Ok(()) } else { Err(TorchError::Pickle) }
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Tensor<'a>, TorchError> {
        let Object::Storage(storage) = self.objects[storage.0] else { return Err(TorchError::Pickle) };
        let (offset, shape, strides) = (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        let fits = shape.len() == strides.len();
        fits.then_some(Tensor { storage, offset, shape, strides }).ok_or(TorchError::Pickle)
    }

    /// The parts of a list or tuple.
    fn parts(&self, id: Id) -> Result<&[Id], TorchError> {
        if let Object::List(parts) = &self.objects[id.0] { Ok(parts) } else { Err(TorchError::Pickle) }
    }

    fn size(&self, id: Id) -> Result<usize, TorchError> {
        let Object::Integer(size) = self.objects[id.0] else { return Err(TorchError::Pickle) };
        usize::try_from(size).map_err(|_| TorchError::Pickle)
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, TorchError> {
        let parts = self.parts(id)?;
        if parts.len() > MOST_AXES {
            return Err(TorchError::Large);
        }
        parts.iter().map(|part| self.size(*part)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(program: &[u8]) -> Result<Object<'_>, TorchError> {
        run(program).map(|objects| objects.get(objects.root).clone())
    }

    /// What `pickle.dumps(n, protocol=2)` writes.
    #[test]
    fn whole_numbers_are_exact() {
        for (program, number) in [
            (&b"\x80\x02K\x00."[..], Object::Integer(0)),
            (b"\x80\x02K\xff.", Object::Integer(255)),
            (b"\x80\x02M\x00\x01.", Object::Integer(256)),
            (b"\x80\x02J\xff\xff\xff\xff.", Object::Integer(-1)),
            (b"\x80\x02J\x00\x00\x01\x00.", Object::Integer(65536)),
            (b"\x80\x02J\xff\xff\xff\x7f.", Object::Integer(i64::from(i32::MAX))),
            (b"\x80\x02J\x00\x00\x00\x80.", Object::Integer(i64::from(i32::MIN))),
            (b"\x80\x02\x8a\x05\x00\x00\x00\x80\x00.", Object::Plain),
            (b"\x80\x02\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.", Object::Plain),
        ] {
            assert_eq!(value(program), Ok(number));
        }
    }

    /// What `pickle.dumps` writes for `os.system("true")`, `eval("1")` and objects of some classes.
    #[test]
    fn nothing_is_imported_and_nothing_called() {
        for (program, name) in [
            (&b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03."[..], "posix.system"),
            (b"\x80\x02c__builtin__\neval\nq\x00X\x01\x00\x00\x001q\x01\x85q\x02Rq\x03.", "__builtin__.eval"),
            (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
            (b"\x80\x02ctorch\nLongStorage\nq\x00.", "torch.LongStorage"),
            (b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n.", "torch._utils._rebuild_tensor_v3"),
            (b"\x80\x02ctorch\n_utils._rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
        ] {
            assert_eq!(value(program), Err(TorchError::Global { name: name.into() }));
        }
        for opcode in [b'i', b'o', b'S', b'P', 0x81, 0x82, 0x92, 0x93, 0x95, 0x97, b'0', b'1', b'2'] {
            assert_eq!(value(&[0x80, 2, opcode, b'.']), Err(TorchError::Opcode { opcode }));
        }
    }

    #[test]
    fn instructions_that_do_not_fit_are_refused() {
        for program in [
            &b""[..],
            b".",
            b"N",
            b"(.",
            b"N(.",
            b"t.",
            b"N\x86.",
            b"N(N\x86.",
            b"NNa.",
            b"](a.",
            b"a.",
            b"}(Nu.",
            b"}Ns.",
            b"]NNs.",
            b"q\x00.",
            b"h\x00.",
            b"NR.",
            b"N)R.",
            b"ccollections\nOrderedDict\nNR.",
            b"ccollections\nOrderedDict\nN\x85R.",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
            b"ctorch\nFloatStorage\n)R.",
            b"]Nb.",
            b"NQ.",
            b")Q.",
            b"X\xff\xff\xff\xffa.",
            b"X\x01\x00\x00\x00\xff.",
            b"ctorch",
            b"ctorch\nFloat",
            b"G\x00.",
        ] {
            assert_eq!(value(program), Err(TorchError::Pickle), "{}", program.escape_ascii());
        }
        let long = vec![b'N'; MOST_BYTES + 1];
        assert_eq!(value(&long), Err(TorchError::Large));
    }

    /// `t = (None,)`, then `t = (t, t)` again and again: 2 to the power of 100 parts, but 101 objects.
    #[test]
    fn parts_that_are_shared_are_held_once() {
        let mut program = b"N\x85".to_vec();
        for _ in 0..100 {
            program.extend(b"q\x00h\x00\x86");
        }
        program.push(b'.');
        assert_eq!(run(&program).unwrap().objects.len(), 102);
    }
}
