//! The calendar date that `strftime_now` prints in a chat template.

use std::fmt;

use jiff::civil;
use jiff::fmt::strtime::{BrokenDownTime, Config};

/// A day of the Gregorian calendar. The time of day is always midnight, so that all prompts of a run render alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(civil::Date);

impl Date {
    /// The date, or nothing where the calendar has no such day or the year is not in 1..=9999.
    pub fn new(year: i32, month: u8, day: u8) -> Option<Self> {
        let year = i16::try_from(year).ok().filter(|year| *year >= 1)?;
        civil::Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok().map(Self)
    }

    /// Reads `YYYY-MM-DD`, the form that [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let date = civil::Date::strptime("%Y-%m-%d", text).ok()?;
        Self::new(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
            .filter(|date| date.to_string() == text)
    }

    /// Today in UTC.
    pub fn today_utc() -> Self {
        Self(jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date())
    }

    /// The date by a format of C's `strftime`, in the C locale. Directives for the time of day print midnight; one that
    /// is not known is printed as it is.
    pub fn strftime(self, format: &str) -> String {
        // what the C locale says, and others say otherwise
        let plain = |part: &str| {
            let c = [("%c", "%a %b %e %T %Y"), ("%x", "%D"), ("%X", "%T"), ("%f", "000000"), ("%Z", ""), ("%z", "")];
            c.iter().fold(part.to_owned(), |part, (directive, meaning)| part.replace(directive, meaning))
        };
        let format = format.split("%%").map(plain).collect::<Vec<_>>().join("%%");
        let midnight = BrokenDownTime::from(self.0.at(0, 0, 0, 0));
        midnight.to_string_with_config(&Config::new().lenient(true), &format).unwrap_or(format)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: i32, month: u8, day: u8) -> Date {
        Date::new(year, month, day).expect("a day of the calendar")
    }

    #[test]
    fn prints_like_strftime_of_python() {
        // datetime(2024, 7, 26).strftime(...) and neighbours, from CPython 3.11.
        let cases = [
            (date(2024, 7, 26), "%d %b %Y", "26 Jul 2024"),
            (date(2024, 7, 26), "%B %d, %Y", "July 26, 2024"),
            (date(2024, 7, 26), "%A %a %w %u %j", "Friday Fri 5 5 208"),
            (date(2025, 1, 5), "%y-%m-%d %e|%-d/%-m %H:%M:%S %p", "25-01-05  5|5/1 00:00:00 AM"),
            (date(2000, 2, 29), "%F %D %T %%", "2000-02-29 02/29/00 00:00:00 %"),
            (date(2023, 12, 31), "%A %j %U", "Sunday 365 53"),
            (date(2024, 7, 26), "%c|%x|%X|%Z%z|%f", "Fri Jul 26 00:00:00 2024|07/26/24|00:00:00||000000"),
            (date(2024, 7, 26), "100 %% % %%c", "100 % % %c"),
        ];
        for (date, format, expected) in cases {
            assert_eq!(date.strftime(format), expected, "{date} {format}");
        }
    }

    #[test]
    fn today_is_a_date() {
        assert!(Date::today_utc() >= date(2024, 1, 1));
    }

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        assert_eq!(Date::parse("2024-02-29"), Some(date(2024, 2, 29)));
        assert_eq!(date(2024, 2, 9).to_string(), "2024-02-09");
        for bad in ["2023-02-29", "2024-13-01", "2024-1-01", "+024-01-01", "", "2024-01-01-1"] {
            assert_eq!(Date::parse(bad), None, "{bad}");
        }
    }
}
