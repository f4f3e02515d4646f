//! Stored elements of the float types: to float64, and back, rounded once.
//!
//! What is called for every element is always inlined, so that it becomes the vector instructions of its caller.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::onnx::DataType;

/// Number of bytes of one element of a float type.
///
/// # Panics
/// For a type that is no float type; a plan holds none.
#[inline(always)]
pub fn width(dtype: DataType) -> usize {
    match dtype {
        DataType::FLOAT => 4,
        DataType::FLOAT16 | DataType::BFLOAT16 => 2,
        DataType::DOUBLE => 8,
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Whether the type is so coarse that some entries are sent to their second-nearest value to take the leak off.
#[inline(always)]
pub fn is_half(dtype: DataType) -> bool {
    matches!(dtype, DataType::FLOAT16 | DataType::BFLOAT16)
}

/// Stored little-endian elements as float64 (exact).
#[inline(always)]
pub fn decode(dtype: DataType, bytes: &[u8], out: &mut [f64]) {
    match dtype {
        DataType::FLOAT => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f64::from(f32::from_le_bytes(*bytes));
            }
        }
        DataType::DOUBLE => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*bytes);
            }
        }
        DataType::BFLOAT16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16));
            }
        }
        DataType::FLOAT16 => {
            // By slices, so that the conversion instructions are looked for once a slice.
            let (mut halves, mut singles) = ([f16::ZERO; 256], [0.0f32; 256]);
            for (values, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                let n = values.len();
                for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *half = f16::from_le_bytes(*bytes);
                }
                halves[..n].convert_to_f32_slice(&mut singles[..n]);
                for (value, single) in values.iter_mut().zip(&singles) {
                    *value = f64::from(*single);
                }
            }
        }
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Float64 to float32, rounded to odd: rounding the result again to a type with at most 22 bits of precision
/// equals rounding once.
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let single = value as f32;
    let wide = f64::from(single);
    let (inexact, above) = (u32::from(wide != value), u32::from(wide.abs() > value.abs()));
    f32::from_bits((single.to_bits() - (inexact & above)) | inexact)
}

/// Float64 values as stored little-endian elements, rounded once to nearest, ties to even.
#[inline(always)]
pub fn encode(dtype: DataType, values: &[f64], out: &mut [u8]) {
    match dtype {
        DataType::FLOAT => {
            for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = (*value as f32).to_le_bytes();
            }
        }
        DataType::DOUBLE => {
            for (bytes, value) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        DataType::BFLOAT16 => {
            for (bytes, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                let odd = to_odd(*value);
                let bits = odd.to_bits();
                let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                *bytes = if odd.is_nan() { bf16::NAN.to_le_bytes() } else { nearest.to_le_bytes() };
            }
        }
        DataType::FLOAT16 => {
            let (mut halves, mut singles) = ([f16::ZERO; 256], [0.0f32; 256]);
            for (values, bytes) in values.chunks(256).zip(out.chunks_mut(512)) {
                let n = values.len();
                for (single, value) in singles.iter_mut().zip(values) {
                    *single = to_odd(*value);
                }
                halves[..n].convert_from_f32_slice(&singles[..n]);
                for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(&halves) {
                    *bytes = half.to_le_bytes();
                }
            }
        }
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Distance between the neighbouring values of the type around `value`, upwards in magnitude.
#[inline(always)]
pub fn spacing(dtype: DataType, value: f64) -> f64 {
    match dtype {
        DataType::DOUBLE => value.abs().next_up() - value.abs(),
        _ => power_of_two(spacing_exponent(dtype, value)),
    }
}

/// A distance in spacings around `value`.
#[inline(always)]
pub(super) fn in_spacings(dtype: DataType, distance: f64, value: f64) -> f64 {
    match dtype {
        DataType::DOUBLE => distance / spacing(dtype, value),
        // the spacing is a power of two: this equals the division to the bit
        _ => distance * power_of_two(-spacing_exponent(dtype, value)),
    }
}

#[inline(always)]
fn spacing_exponent(dtype: DataType, value: f64) -> i64 {
    let (digits, lowest) = match dtype {
        DataType::FLOAT16 => (10, -14),
        DataType::BFLOAT16 => (7, -126),
        DataType::FLOAT => (23, -126),
        other => panic!("a plan holds float tensors only, not {other}"),
    };
    let exponent = ((value.to_bits() >> 52) & 0x7ff) as i64 - 1023;
    exponent.max(lowest) - digits
}

#[inline(always)]
fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}
