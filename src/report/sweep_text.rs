//! The terminal text of `lancet sweep`.

use super::html::setting_name;
use super::layout::{Cell, Style, Tone, fact, labelled, plain, shorten, single_line};
use super::measured_text::fitted;
use super::number::{MISSING, percent, significant};
use super::{ClassResult, SweepResult};

/// The trade-off, a row a setting, the recommendation, and directions on other sets, for a terminal of `width` columns.
#[must_use]
pub fn sweep_summary(sweep: &SweepResult, width: usize, style: Style) -> String {
    let mut out = String::new();
    let rate = |r: &ClassResult| if r.total == 0 { MISSING.to_owned() } else { percent(r.refusal_rate) };
    let rows: Vec<Vec<Cell>> = sweep
        .rows
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let best = sweep.recommended == Some(i);
            let tone = if best { Tone::Strong } else { Tone::Plain };
            let policy = match (&row.guard, &row.failure) {
                (_, Some(_)) => ("failed".to_owned(), Tone::Faint),
                (Some(guard), _) if guard.passed => ("within".to_owned(), Tone::Good),
                (Some(_), _) => ("outside".to_owned(), Tone::Bad),
                (None, None) => (MISSING.to_owned(), Tone::Plain),
            };
            let mut cells: Vec<Cell> = vec![(format!("{}{}", if best { "* " } else { "  " }, setting_name(row)), tone)];
            let numbers = [
                rate(&row.classes.pseudo_harmful),
                rate(&row.classes.harmful),
                row.wrapped_refusal_rate.map_or_else(|| MISSING.to_owned(), percent),
                significant(row.harmless_kl),
            ];
            cells.extend(numbers.map(|text| (text, tone)));
            cells.push(policy);
            cells
        })
        .collect();
    let header = ["  refused", "pseudo-harmful", "harmful", "wrapped", "harmless KL", "policy"];
    fitted(&mut out, style, width, &header, &[false, true, true, true, true, false], &rows);
    for row in &sweep.rows {
        if let Some(failure) = &row.failure {
            labelled(&mut out, style, ("    -", 6), &format!("{}: {failure}", setting_name(row)), (width, 2));
        }
    }
    out.push('\n');
    match sweep.recommended.and_then(|i| sweep.rows.get(i)) {
        Some(row) => fact(&mut out, style, width, "Best", &format!("{}: {}", setting_name(row), sweep.reason)),
        None => fact(&mut out, style, width, "Best", &format!("none: {}", sweep.reason)),
    }
    if !sweep.cross.is_empty() {
        cross(&mut out, sweep, width, style);
    }
    out
}

/// Pseudo-harmful refusal of the sets in columns, under the directions of the sets in rows.
fn cross(out: &mut String, sweep: &SweepResult, width: usize, style: Style) {
    let (mut from, mut on): (Vec<&str>, Vec<&str>) = (vec![], vec![]);
    for row in &sweep.cross {
        if !from.contains(&row.from.as_str()) {
            from.push(&row.from);
        }
        if !on.contains(&row.on.as_str()) {
            on.push(&row.on);
        }
    }
    let titles: Vec<String> = on.iter().map(|o| format!("on {}", shorten(&single_line(o), 20))).collect();
    let mut header = vec!["direction of"];
    header.extend(titles.iter().map(String::as_str));
    let rows: Vec<Vec<Cell>> = from
        .iter()
        .map(|f| {
            let mut cells = vec![plain(shorten(&single_line(f), 24))];
            cells.extend(on.iter().map(|o| {
                let found = sweep.cross.iter().find(|r| r.from == *f && r.on == *o);
                let tone = if f == o { Tone::Strong } else { Tone::Plain };
                (
                    found.map_or_else(
                        || MISSING.to_owned(),
                        |r| format!("{} → {}", percent(r.before).trim_end_matches(" %"), percent(r.after)),
                    ),
                    tone,
                )
            }));
            cells
        })
        .collect();
    let right: Vec<bool> = (0..header.len()).map(|i| i > 0).collect();
    out.push('\n');
    fitted(out, style, width, &header, &right, &rows);
}

#[cfg(test)]
mod tests {
    use super::super::rich;
    use super::*;

    #[test]
    fn sweep_reads_well() {
        let sweep = rich::run().sweep.expect("the rich run has one");
        insta::assert_snapshot!(sweep_summary(&sweep, 92, Style { color: false }), @r#"
            refused            pseudo-harmful  harmful  wrapped  harmless KL  policy
            unchanged                  92.2 %  100.0 %   71.2 %            –  –
            λ 1                        34.4 %  100.0 %   68.9 %      0.00870  within
          * λ 0.8                      28.1 %   98.4 %   66.1 %       0.0102  within
            λ 0.6                      22.7 %   94.5 %   60.2 %       0.0141  outside
            λ 0.4                      16.4 %   87.5 %   52.1 %       0.0193  outside
            λ 0.2                      11.7 %   75.8 %   43.3 %       0.0288  outside
            λ 0                         7.0 %   60.9 %   31.7 %       0.0461  outside
            λ 1, strength 0.5          61.7 %  100.0 %   70.5 %      0.00290  within
            λ 1, addition 0.5               –        –        –            –  failed
            - λ 1, addition 0.5: all 110 candidates were discarded

        Best        λ 0.8: lambda 0.8 answers most pseudo-harmful prompts of the settings within the
                    policy

          direction of      on xstest  on orbench-hard      on phtest
          xstest        92.0 → 28.0 %    81.0 → 61.0 %  66.0 → 53.0 %
          orbench-hard  92.0 → 53.0 %    81.0 → 33.0 %  66.0 → 61.0 %
          phtest        92.0 → 61.0 %    81.0 → 53.0 %  66.0 → 38.0 %
        "#);
    }

    #[test]
    fn nothing_panics_on_empty_narrow_or_hostile() {
        let mut hostile = rich::run().sweep.expect("the rich run has one");
        hostile.reason = "\u{1b}[2J".repeat(90);
        hostile.cross[0].from = "\u{1b}]0;x\u{7}".into();
        hostile.rows[3].failure = Some("\u{1b}".into());
        hostile.recommended = Some(99);
        for sweep in [SweepResult::default(), hostile] {
            for width in [0, 1, 20, 80, 400] {
                let text = sweep_summary(&sweep, width, Style { color: false });
                assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
            }
        }
    }
}
