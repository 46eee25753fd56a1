//! What BTF says of a type: one line for each field, so that two layouts can be compared (Documentation/bpf/btf.rst).
//!
//! Names of types say nothing of a layout and are left out: those of fields say what the bytes mean. `build.rs` uses this too, for
//! the maps of the object.

/// As deep as types may lie in each other.
const DEPTH: usize = 16;

/// The types that one blob of BTF describes, by number.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    /// Each from its first word on; the first is `void`.
    types: Vec<&'a [u8]>,
    names: &'a [u8],
}

/// include/uapi/linux/btf.h, `BTF_KIND_*`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// A word of this machine, whose byte order a kernel's and an own object's BTF have.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let word = bytes.get(4 * index..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

fn index(number: u32) -> Option<usize> {
    usize::try_from(number).ok()
}

impl<'a> Btf<'a> {
    /// `None` when this is no BTF, or of a kind that is not known here.
    pub(super) fn parse(blob: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let (magic, _) = blob.split_first_chunk()?;
        if u16::from_ne_bytes(*magic) != MAGIC {
            return None;
        }
        let body = blob.get(index(word(blob, 1)?)?..)?;
        let section = |first| -> Option<&'a [u8]> {
            body.get(index(word(blob, first)?)?..)?.get(..index(word(blob, first + 1)?)?)
        };
        let (mut rest, names) = (section(2)?, section(4)?);
        let mut types = vec![&[][..]];
        while !rest.is_empty() {
            types.push(rest);
            rest = rest.get(4 * words(rest)?..)?;
        }
        Some(Self { types, names })
    }

    /// The fields of a type, each with its place in bits; that of a number is nameless. `None` when the blob does not have them.
    pub(super) fn fields(&self, number: u32) -> Option<Vec<String>> {
        let mut found = Vec::new();
        self.walk(number, "", 0, DEPTH, &mut found)?;
        Some(found)
    }

    fn walk(&self, number: u32, path: &str, place: u32, depth: usize, found: &mut Vec<String>) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        let described = self.types.get(index(number)?)?;
        let (info, size) = (word(described, 1)?, word(described, 2)?);
        match kind_of(info) {
            kind::INT | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                found.push(format!("{path}: {} bits at {place}", size.checked_mul(8)?));
            }
            kind::PTR => found.push(format!("{path}: pointer at {place}")),
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.walk(size, path, place, depth, found)?;
            }
            kind::ARRAY => {
                let (element, length) = (word(described, 3)?, word(described, 5)?);
                self.walk(element, &format!("{path}[{length}]"), place, depth, found)?;
            }
            kind::STRUCT | kind::UNION => {
                // Bit fields have their width in the upper byte of the place, when the kind's flag says so.
                let bits = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
                for member in 0..index(info & 0xffff)? {
                    let first = 3 + 3 * member;
                    let name = self.name(word(described, first)?)?;
                    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    let place = place.checked_add(word(described, first + 2)? & bits)?;
                    self.walk(word(described, first + 1)?, &path, place, depth, found)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn name(&self, place: u32) -> Option<&'a str> {
        let from = self.names.get(index(place)?..)?;
        let end = from.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(from.get(..end)?).ok()
    }
}

const fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// How many words describe the first of these types.
fn words(described: &[u8]) -> Option<usize> {
    let info = word(described, 1)?;
    let several = index(info & 0xffff)?;
    Some(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 6,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 3 + 3 * several,
        kind::ENUM | kind::FUNC_PROTO => 3 + 2 * several,
        // const, func, fwd and the like
        0 => return None,
        known if known <= kind::ENUM64 => 3,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct { u32 packets; const u16 ports[3]; struct { u8 a; u8 b; } both; }`, and behind it an enum, a function and a variable.
    fn example() -> Vec<u8> {
        let names = b"\0packets\0ports\0both\0a\0b\0";
        let (packets, ports, both, a, b) = (1, 9, 15, 20, 22);
        let head = |kind: u32, several: u32| kind << 24 | several;
        let types: &[u32] = &[
            // 1: u32, 2: u16, 3: u8
            &[0, head(kind::INT, 0), 4, 32][..],
            &[0, head(kind::INT, 0), 2, 16],
            &[0, head(kind::INT, 0), 1, 8],
            // 4: const u16, 5: three of them
            &[0, head(kind::CONST, 0), 2],
            &[0, head(kind::ARRAY, 0), 0, 4, 1, 3],
            // 6: the inner structure, 7: the outer one
            &[0, head(kind::STRUCT, 2), 2, a, 3, 0, b, 3, 8],
            &[0, head(kind::STRUCT, 3), 12, packets, 1, 0, ports, 5, 32, both, 6, 80],
            // 8: what no map has
            &[0, head(kind::ENUM, 1), 4, a, 1],
            &[0, head(kind::FUNC_PROTO, 1), 0, a, 1],
            &[b, head(kind::VAR, 0), 1, 1],
            // 11: a typedef of the whole
            &[a, head(kind::TYPEDEF, 0), 7],
        ]
        .concat();
        let length = u32::try_from(4 * types.len()).unwrap();
        let header = [0x0001_eb9f, 24, 0, length, length, u32::try_from(names.len()).unwrap()];
        let words = header.iter().chain(types);
        words.flat_map(|word| word.to_ne_bytes()).chain(names.iter().copied()).collect()
    }

    #[test]
    fn fields_have_names_sizes_and_places() {
        let blob = example();
        let types = Btf::parse(&blob).unwrap();
        let fields = [
            "packets: 32 bits at 0",
            "ports[3]: 16 bits at 32",
            "both.a: 8 bits at 80",
            "both.b: 8 bits at 88",
        ];
        assert_eq!(types.fields(7).unwrap(), fields);
        assert_eq!(types.fields(11).unwrap(), fields);
        assert_eq!(types.fields(2).unwrap(), [": 16 bits at 0"]);
        // void, a function, and what is not there
        for number in [0, 9, 12] {
            assert_eq!(types.fields(number), None, "{number}");
        }
    }

    #[test]
    fn what_is_no_btf_is_not_read() {
        let whole = example();
        assert!(Btf::parse(&[]).is_none());
        assert!(Btf::parse(&whole[1..]).is_none());
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length]).is_none(), "{length}");
        }
        for (place, bit) in (0..whole.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
            let mut changed = whole.clone();
            changed[place] ^= 1 << bit;
            // Whatever it says: no panic, and an end.
            let _ = Btf::parse(&changed).and_then(|types| types.fields(7));
        }
    }
}
