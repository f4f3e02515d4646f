//! The calendar date that `strftime_now` prints in a chat template.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A day of the Gregorian calendar. The time of day is always midnight, so that all prompts of a
/// run render alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    year: i32,
    month: u8,
    day: u8,
}

impl Date {
    /// The date, or nothing where the calendar has no such day or the year is not in 1..=9999.
    pub fn new(year: i32, month: u8, day: u8) -> Option<Self> {
        let valid =
            (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
        valid.then_some(Self { year, month, day })
    }

    /// Reads `YYYY-MM-DD`, the form that [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || !digits(year, 4) || !digits(month, 2) || !digits(day, 2) {
            return None;
        }
        Self::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?)
    }

    /// Today in UTC (1970-01-01 where the clock is before that).
    pub fn today_utc() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs());
        Self::from_days_since_epoch(i64::try_from(seconds / 86_400).unwrap_or(0))
    }

    /// Civil date from days since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
    /// algorithms", `civil_from_days`), for days at or after the epoch.
    fn from_days_since_epoch(days: i64) -> Self {
        let days = days.clamp(0, 2_932_896) + 719_468; // up to 9999-12-31
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year: i32::try_from(year).expect("days are clamped to the year 9999"),
            month: u8::try_from(month).expect("a month is 1..=12"),
            day: u8::try_from(day).expect("a day is 1..=31"),
        }
    }

    fn day_of_year(self) -> u32 {
        let before: u32 = (1..self.month).map(|month| u32::from(days_in_month(self.year, month))).sum();
        before + u32::from(self.day)
    }

    /// 0 is Sunday.
    fn weekday(self) -> usize {
        let years = i64::from(self.year) - 1;
        let days = 365 * years + years / 4 - years / 100 + years / 400 + i64::from(self.day_of_year());
        usize::try_from(days % 7).expect("years start at 1, so the count of days is positive")
    }

    /// The date by a format of C's `strftime`, in the C locale. Directives for the time of day print
    /// midnight; one that is not known is printed as it is.
    pub fn strftime(self, format: &str) -> String {
        let month = usize::from(self.month) - 1;
        let mut result = String::with_capacity(format.len() + 16);
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                result.push(character);
                continue;
            }
            let mut directive = characters.next();
            let unpadded = directive == Some('-');
            if unpadded {
                directive = characters.next();
            }
            let number = |value: u32, width: usize| {
                if unpadded { value.to_string() } else { format!("{value:0width$}") }
            };
            let year = self.year.unsigned_abs();
            let text = match directive {
                Some('Y') => year.to_string(),
                Some('y') => number(year % 100, 2),
                Some('C') => number(year / 100, 2),
                Some('m') => number(u32::from(self.month), 2),
                Some('d') => number(u32::from(self.day), 2),
                Some('e') if unpadded => self.day.to_string(),
                Some('e') => format!("{:2}", self.day),
                Some('j') => number(self.day_of_year(), 3),
                Some('B') => MONTHS[month].to_owned(),
                Some('b' | 'h') => MONTHS[month][..3].to_owned(),
                Some('A') => WEEKDAYS[self.weekday()].to_owned(),
                Some('a') => WEEKDAYS[self.weekday()][..3].to_owned(),
                Some('w') => self.weekday().to_string(),
                Some('u') => ((self.weekday() + 6) % 7 + 1).to_string(),
                Some('F') => self.strftime("%Y-%m-%d"),
                Some('D' | 'x') => self.strftime("%m/%d/%y"),
                Some('c') => self.strftime("%a %b %e 00:00:00 %Y"),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('f') => "000000".to_owned(),
                Some('p') => "AM".to_owned(),
                Some('T' | 'X') => "00:00:00".to_owned(),
                Some('R') => "00:00".to_owned(),
                Some('Z' | 'z') => String::new(),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                Some('%') => "%".to_owned(),
                Some(other) => format!("%{}{other}", if unpadded { "-" } else { "" }),
                None => format!("%{}", if unpadded { "-" } else { "" }),
            };
            result.push_str(&text);
        }
        result
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

fn days_in_month(year: i32, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
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
            (date(2023, 12, 31), "%A %j %U", "Sunday 365 %U"),
        ];
        for (date, format, expected) in cases {
            assert_eq!(date.strftime(format), expected, "{date} {format}");
        }
    }

    #[test]
    fn counts_days_from_the_epoch() {
        assert_eq!(Date::from_days_since_epoch(0), date(1970, 1, 1));
        assert_eq!(Date::from_days_since_epoch(11_016), date(2000, 2, 29));
        assert_eq!(Date::from_days_since_epoch(19_930), date(2024, 7, 26));
        assert_eq!(Date::from_days_since_epoch(i64::MAX), date(9999, 12, 31));
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
