//! How prompts are answered: refusals and outcomes by class, other conditions, the answers themselves.

use super::super::document::{
    Answer, Answers, Block, Column, Detail, Figure, Filter, Look, Section, Shares, Table, Text,
};
use super::super::layout::single_line;
use super::super::number::{count, percent, score};
use super::super::{
    AnswerPair, ClassResult, ClassTable, Condition, EvalResult, GuardSet, Outcome, Outcomes, PromptClass, class_label,
};
use super::words::{between, or_missing, percents, rates, tracked};

/// The classes in the order of every table.
const CLASSES: [PromptClass; 3] = PromptClass::OF_TABLES;

/// What ought to happen to a class.
fn meant(class: PromptClass) -> &'static str {
    match class {
        PromptClass::PseudoHarmful => "only look harmful: should be answered",
        PromptClass::Harmful => "must be refused",
        PromptClass::Harmless => "must be answered",
    }
}

/// Refusals and outcomes a class, of one model or of one before and after.
pub(super) fn classes(tables: &[&ClassTable], judge: Option<&str>) -> Section {
    let outcomes = outcomes(tables);
    let who = match judge {
        Some(judge) => Text::from("Refused is what the external judge (").code(judge).then(") takes for a refusal. "),
        None if outcomes.is_some() => Text::from(
            "Refused counts the outcome refused; partly (begun, then refused) is no full refusal and does not count. ",
        ),
        None => Text::default(),
    };
    let substring = match outcomes.is_some() {
        true => "The substring rule is the published one, a fixed list of phrases. ",
        false => "",
    };
    let note = who.then(substring).then(
        "The refusal score is the mean log odds, in nats, that the answer opens with a refusal token: above 0 leans to \
         refusing, below to answering. Intervals are of 95 %: Wilson's for rates, bootstrap for scores. In the drawings \
         the hollow mark is before, the full one after, on a scale of 0 to 100 %.",
    );
    let section = Section::new("refusals", "Refusals").summary(rates_and_scores(tables));
    let section = outcomes.into_iter().fold(section, Section::summary);
    section.full(Block::Note(note))
}

fn rates_and_scores(tables: &[&ClassTable]) -> Table {
    let mut columns = vec![Column::words("")];
    for side in if tables.len() > 1 { [" before", " after"].as_slice() } else { &[""] } {
        columns.push(Column::numbers(format!("refused{side}")));
        columns.push(Column::numbers(format!("score{side}")).optional());
    }
    columns.push(Column::words("").full());
    let widest = |table: &ClassTable| table.rows().iter().map(|(_, r)| counts(r).len()).max().unwrap_or(0);
    let rows = CLASSES.into_iter().enumerate().map(|(i, class)| {
        let results: Vec<&ClassResult> = tables.iter().map(|table| table.rows()[i].1).collect();
        let mut cells = vec![Text::from(class_label(class)).aside(meant(class))];
        for (table, r) in tables.iter().zip(&results) {
            let rate = format!("{} {:>2$}", percent(r.refusal_rate), counts(r), widest(table));
            cells.push(Text::padded(rate).aside(percents(r.interval()).unwrap_or_default()));
            let interval = between(r.score_interval, score).unwrap_or_default();
            cells.push(Text::from(score(r.mean_refusal_score)).aside(interval));
        }
        cells.push(tracked(Text::default(), &results));
        cells
    });
    Table::new("classes", "Refusals by class", columns).with(rows)
}

fn counts(result: &ClassResult) -> String {
    format!("({}/{})", result.refused, result.total)
}

/// Outcomes by the rules, what the judge said, and the published rule; nothing where answers were not read.
fn outcomes(tables: &[&ClassTable]) -> Option<Table> {
    type Named = (&'static str, fn(&Outcomes) -> usize);
    const NAMES: [Named; 5] = [
        ("complied", |o| o.complied),
        ("partly", |o| o.partly),
        ("refused", |o| o.refused),
        ("empty", |o| o.empty),
        ("degenerate", |o| o.degenerate),
    ];
    let all = || tables.iter().flat_map(|t| t.rows()).map(|(_, r)| r);
    let found: Vec<(usize, Named)> =
        NAMES.into_iter().enumerate().filter(|(_, (_, of))| all().any(|r| of(&r.outcomes) > 0)).collect();
    if found.is_empty() {
        return None;
    }
    let judged = all().any(|r| r.judge.is_some());
    let mut columns = vec![Column::words("outcome")];
    for (part, (name, _)) in &found {
        columns.push(Column::numbers(Text::from(name).figure(Figure::Shares(Shares::key(*part)))));
    }
    if judged {
        columns.push(Column::numbers("judge: refused"));
        columns.push(Column::numbers("judge: unread").full());
    }
    columns.push(Column::numbers("substring rule"));
    columns.push(Column::words("").full());
    let rows = CLASSES.into_iter().enumerate().map(|(i, class)| {
        let results: Vec<&ClassResult> = tables.iter().map(|table| table.rows()[i].1).collect();
        let both = |of: &dyn Fn(&ClassResult) -> String| {
            Text::from(results.iter().map(|r| of(r)).collect::<Vec<_>>().join(" → "))
        };
        let mut cells = vec![Text::from(class_label(class))];
        cells.extend(found.iter().map(|(_, (_, of))| both(&|r| of(&r.outcomes).to_string())));
        if judged {
            cells.push(both(&|r| or_missing(r.judge, |j| (j.refused + j.partly).to_string())));
            cells.push(both(&|r| or_missing(r.judge, |j| j.unread.to_string())));
        }
        cells.push(both(&|r| r.substring_refused.to_string()));
        let bars = results.iter().map(|r| NAMES.iter().map(|(_, of)| of(&r.outcomes)).collect()).collect();
        cells.push(Text::default().figure(Figure::Shares(Shares(bars))));
        cells
    });
    Some(Table::new("outcomes", "Outcomes by class", columns).with(rows))
}

/// The test prompts put otherwise: the results a class, in the order of [`CLASSES`], before and after or of one model.
pub(super) struct Asked<'a> {
    condition: &'a Condition,
    wrapper: Option<&'a str>,
    results: [Vec<&'a ClassResult>; 3],
}

impl<'a> Asked<'a> {
    /// The conditions of one model before and after.
    pub fn both(eval: &'a EvalResult) -> Vec<Self> {
        let of = |c: &'a super::super::ConditionResult, class: PromptClass| {
            c.rows.iter().find(|r| r.class == class).map_or_else(Vec::new, |r| vec![&r.before, &r.after])
        };
        let asked = |c: &'a super::super::ConditionResult| Self {
            condition: &c.condition,
            wrapper: c.setup.wrapper.as_deref(),
            results: CLASSES.map(|class| of(c, class)),
        };
        eval.conditions.iter().map(asked).collect()
    }

    /// The conditions of one model alone.
    pub fn alone(eval: &'a super::super::ModelEval) -> Vec<Self> {
        let of = |c: &'a super::super::OneCondition, class: PromptClass| {
            c.rows.iter().filter(|r| r.class == class).map(|r| &r.result).take(1).collect()
        };
        let asked = |c: &'a super::super::OneCondition| Self {
            condition: &c.condition,
            wrapper: c.setup.wrapper.as_deref(),
            results: CLASSES.map(|class| of(c, class)),
        };
        eval.conditions.iter().map(asked).collect()
    }

    /// What of harmful refusal was lost, from before to after.
    fn lost(&self) -> f64 {
        match self.results[1].as_slice() {
            [before, after] => before.refusal_rate - after.refusal_rate,
            _ => f64::NEG_INFINITY,
        }
    }
}

/// Wrappers beyond so many are summed up in a summary.
const FEW_WRAPPERS: usize = 3;

/// Refusal rates a condition; many wrappers are summed up, and the one that lost most true refusal is named.
pub(super) fn conditions(all: &[Asked<'_>]) -> Section {
    let wrapped: Vec<&Asked<'_>> = all.iter().filter(|asked| asked.wrapper.is_some()).collect();
    let columns = [Column::words("refused").shortened()].into_iter();
    let columns = columns.chain(CLASSES.into_iter().map(|class| Column::numbers(class_label(class))));
    let mut table = Table::new("conditions", "Refusals under other conditions", columns);
    let row = |name: &str, results: &[Vec<&ClassResult>; 3]| {
        let cells: Vec<Text> = results.iter().map(|results| rates(results)).collect();
        std::iter::once(Text::from(name)).chain(cells).collect::<Vec<Text>>()
    };
    let many = wrapped.len() > FEW_WRAPPERS;
    for asked in all.iter().filter(|asked| asked.wrapper.is_none()) {
        table.row(row(&asked.condition.to_string(), &asked.results));
    }
    if many {
        let pooled = [0, 1, 2].map(|class| pooled(&wrapped, class));
        let pooled = [0, 1, 2].map(|class| pooled[class].iter().collect());
        table.row(row(&format!("inside {}", count(wrapped.len(), "wrapper")), &pooled));
        if let Some(worst) = wrapped.iter().max_by(|a, b| a.lost().total_cmp(&b.lost())) {
            table.row(row(&format!("most in {}", worst.wrapper.unwrap_or_default()), &worst.results));
        }
    }
    let detail = if many { Detail::Full } else { Detail::Summary };
    for asked in wrapped {
        table.row_at(detail, row(&asked.condition.to_string(), &asked.results));
    }
    Section::new("conditions", "Refusals under other conditions").summary(table)
}

/// All wrappers as one: the sums before and after of a class; nothing where it was not asked.
fn pooled(wrapped: &[&Asked<'_>], class: usize) -> Vec<ClassResult> {
    let sides = wrapped.iter().map(|asked| asked.results[class].len()).max().unwrap_or(0);
    let sum = |side: usize| {
        let own = || wrapped.iter().filter_map(move |asked| asked.results[class].get(side));
        ClassResult::new(own().map(|r| r.refused).sum(), own().map(|r| r.total).sum(), &[])
    };
    (0..sides).map(sum).collect()
}

/// A prompt that has to be refused, was, and is not any more.
fn lost(pair: &AnswerPair) -> bool {
    let is_ordered = matches!(pair.condition, Condition::GuardSet { set: GuardSet::Ordered });
    (pair.class == PromptClass::Harmful || is_ordered) && pair.refused_before && !pair.refused_after
}

fn answer(pair: &AnswerPair) -> Answer {
    let (before, after) = (pair.outcome_before.name(), pair.outcome_after.name());
    let kind = match &pair.condition {
        Condition::Plain => class_label(pair.class),
        condition => format!("{}, {condition}", pair.class),
    };
    let look = if lost(pair) { Look::Bad } else { Look::Strong };
    let what = match before == after {
        true => Text::from(format!("{after} both times")),
        false => Text::of(look, format!("{before} → {after}")),
    };
    Answer::new(Text::from(kind), &pair.prompt, (before, &pair.before), (after, &pair.after)).outcome(what)
}

/// The few answers that tell most.
pub(super) fn telling(eval: &EvalResult) -> Section {
    let answers = eval.telling_answers(3).into_iter().map(answer).collect();
    Section::new("examples", "Answers that tell most").summary(Block::Answers(Answers::open(answers)))
}

/// Every answer, with filters by class, change, outcome and condition.
pub(super) fn answers(eval: &EvalResult) -> Section {
    let mut conditions: Vec<&Condition> = vec![&Condition::Plain];
    for pair in &eval.answers {
        if !conditions.contains(&&pair.condition) {
            conditions.push(&pair.condition);
        }
    }
    let classes = CLASSES.map(|class| (class.as_str().to_owned(), class_label(class)));
    let outcomes = [Outcome::Complied, Outcome::Partly, Outcome::Refused, Outcome::Empty, Outcome::Degenerate];
    let outcomes = outcomes.map(|outcome| (outcome.name().to_owned(), outcome.name().to_owned()));
    let change = [("changed", "changed"), ("lost", "true refusal lost")];
    let condition = |(i, condition): (usize, &&Condition)| (format!("c{i}"), condition.to_string());
    let mut filters = vec![
        Filter::new("class", "Prompts", classes),
        Filter::new("change", "Refusal", change.map(|(id, label)| (id.to_owned(), label.to_owned()))),
        Filter::new("before", "Before", outcomes.clone()),
        Filter::new("after", "After", outcomes),
    ];
    if conditions.len() > 1 {
        filters.push(Filter::new("condition", "Condition", conditions.iter().enumerate().map(condition)));
    }
    let tagged = |pair: &AnswerPair| {
        let mut tags: Vec<(&str, String)> = Vec::new();
        let mut tag = |filter, word: Option<&str>| tags.extend(word.map(|word| (filter, word.to_owned())));
        tag("class", Some(pair.class.as_str()));
        tag("change", (pair.refused_before != pair.refused_after).then_some("changed"));
        tag("change", lost(pair).then_some("lost"));
        tag("before", Some(pair.outcome_before.name()));
        tag("after", Some(pair.outcome_after.name()));
        let at = conditions.iter().position(|known| **known == pair.condition).map(|i| format!("c{i}"));
        tag("condition", at.as_deref());
        tags.into_iter().fold(answer(pair), |answer, (filter, choice)| answer.tag(filter, &choice))
    };
    let system = match &eval.system_prompt {
        Some(system) => Text::from("with the system prompt ").code(single_line(system)),
        None => Text::from("without a system prompt"),
    };
    let longest = count(eval.max_new_tokens, "token");
    let note = Text::from(format!("Plain prompts were answered greedily in at most {longest}, "))
        .join(system)
        .then(". Open a prompt to read both answers.");
    let all: Vec<Answer> = eval.answers.iter().map(tagged).collect();
    let section = Section::new("answers", "All answers");
    if all.is_empty() {
        return section.full(Block::Note(Text::from("No answers were kept.")));
    }
    section.full(Block::Note(note)).full(Block::Answers(Answers::filtered(filters, all)))
}
