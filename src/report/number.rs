//! Numbers a person can read.

/// Stands for a number that is missing or not finite.
pub const MISSING: &str = "–";

/// A fraction as a percentage with one decimal: 0.344 is `34.4 %`.
#[must_use]
pub fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1} %", fraction * 100.0) } else { MISSING.into() }
}

/// Three significant digits: 0.00493, 12.3, 1.20e-7.
#[must_use]
pub fn significant(value: impl Into<Option<f64>>) -> String {
    let Some(value) = value.into().filter(|v| v.is_finite()) else {
        return MISSING.into();
    };
    if value == 0.0 {
        return "0".into();
    }
    let scientific = format!("{value:.2e}");
    // Taken from the rounded text, so that 9.999 is 10.0 and not 10.00.
    let exponent = scientific.rsplit('e').next().and_then(|e| e.parse::<i32>().ok()).unwrap_or_default();
    match exponent {
        -3..=6 => format!("{value:.*}", usize::try_from(2 - exponent).unwrap_or(0)),
        _ => scientific,
    }
}

/// The shortest form that reads back as the same number, for settings: 1, 0.5, 0.02.
#[must_use]
pub fn setting(value: f64) -> String {
    if value.is_finite() { format!("{value}") } else { MISSING.into() }
}

/// A refusal score: signed, two decimals.
#[must_use]
pub fn score(value: impl Into<Option<f64>>) -> String {
    match value.into().filter(|v| v.is_finite()) {
        // Adding zero turns -0.0 into 0.0.
        Some(value) => format!("{:+.2}", (value * 100.0).round() / 100.0 + 0.0),
        None => MISSING.into(),
    }
}

/// A size, decimal units: `512 B`, `5.21 MB`, `14.5 GB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    if count < 1000 {
        return format!("{count} B");
    }
    for unit in ["kB", "MB", "GB"] {
        value /= 1000.0;
        if value < 999.5 {
            return format!("{} {unit}", significant(value));
        }
    }
    format!("{} TB", significant(value / 1000.0))
}

/// A duration: `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`.
#[must_use]
pub fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return MISSING.into();
    }
    let whole = value.round() as u64;
    match whole {
        0..60 if value < 10.0 => format!("{value:.2} s"),
        0..60 => format!("{value:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Dimensions: `4096 × 11008`; nothing for a scalar's empty list.
#[must_use]
pub fn shape(dimensions: Option<&[u64]>) -> String {
    dimensions.map_or_else(|| MISSING.into(), |d| d.iter().map(u64::to_string).collect::<Vec<_>>().join(" × "))
}

/// A count with its noun: `1 tensor`, `2 tensors`.
#[must_use]
pub fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (0.004_930_1, "0.00493"),
            (9.999, "10.0"),
            (0.099_99, "0.100"),
            (123.4, "123"),
            (12_345.6, "12346"),
            (-1.5, "-1.50"),
            (1.2e-7, "1.20e-7"),
            (3e12, "3.00e12"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(significant(value), expected, "{value}");
        }
        assert_eq!(significant(None), "–");
    }

    #[test]
    fn others() {
        assert_eq!(percent(0.344), "34.4 %");
        assert_eq!(percent(1.0), "100.0 %");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(score(-0.001), "+0.00");
        assert_eq!(score(-1.0), "-1.00");
        assert_eq!(score(f64::NAN), "–");
        assert_eq!(setting(0.5), "0.5");
        assert_eq!(setting(1.0), "1");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(5_210_000), "5.21 MB");
        assert_eq!(bytes(999_900_000), "1.00 GB");
        assert_eq!(bytes(u64::MAX), "1.84e7 TB");
        assert_eq!(seconds(0.421), "0.42 s");
        assert_eq!(seconds(200.4), "3 min 20 s");
        assert_eq!(seconds(59.9), "1 min 00 s");
        assert_eq!(seconds(7500.0), "2 h 05 min");
        assert_eq!(seconds(f64::NAN), "–");
        assert_eq!(shape(Some(&[2, 3])), "2 × 3");
    }
}
