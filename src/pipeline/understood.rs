//! The variants of a package, understood.

use super::opened::{Opened, Plans, Understood};
use super::package::{Variant, VariantRole};
use crate::bake::{BakePlan, PlanOptions};
use crate::edit::Edit;
use crate::error::Error;
use crate::lm::EmbeddingFile;
use crate::onnx::Graph;

/// A variant of a package, understood once a command.
pub struct UnderstoodVariant<'p> {
    /// Which variant.
    pub variant: &'p Variant,
    /// Its files.
    pub opened: &'p Opened,
    /// The language model; `None` for an embedding file that goes with no model by its name.
    pub model: Option<Understood<'p>>,
}

impl<'p> UnderstoodVariant<'p> {
    /// Finds the language model of a variant.
    ///
    /// # Errors
    /// If its files cannot be read, or the first thing in its graph that is not understood.
    pub fn new(variant: &'p Variant) -> Result<Self, Error> {
        let opened = variant.opened()?;
        let model = match variant.role {
            VariantRole::Model => Some(opened.understand()?),
            VariantRole::Embedding => None,
        };
        Ok(Self { variant, opened, model })
    }

    /// Width of the residual stream; `None` for an embedding file, which is read with the edit's.
    pub fn d_model(&self) -> Option<usize> {
        self.model.as_ref().map(|model| model.lm.d_model())
    }

    /// Plans the edit.
    ///
    /// # Errors
    /// As [`Understood::plan`]; of an embedding file, if it makes no embedding of the edit's width.
    pub fn plan(&self, edit: &Edit, options: &PlanOptions) -> Result<Plans, Error> {
        if let Some(model) = &self.model {
            return model.plan(edit, options);
        }
        let file = EmbeddingFile::new(Graph::new(&self.opened.model), None, Some(edit.width()))?;
        Ok(Plans { main: BakePlan::new(&file.graph, &file, edit, options)?, embedding: None })
    }
}
