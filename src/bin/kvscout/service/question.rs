//! What a router asks: a prompt, and whom it is about.

use std::collections::BTreeSet;

use kvscout::block::{BlockSize, Item, Lora, Name, Prompt, WorkerId};
use kvscout::scout::{Blocks, Explained, Registration, Request};

use super::{Refusal, Row, Service, Wanted};

/// A question by tokens, with everything that it refers to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    /// The tenant.
    pub(crate) tenant: Option<String>,
    /// The model, or a registered adapter's name; without one, every worker of the tenant is asked.
    pub(crate) model: Option<String>,
    /// The prompt.
    pub(crate) token_ids: Vec<u32>,
    /// An adapter.
    pub(crate) lora: Option<Adapter>,
    /// The request's salt.
    pub(crate) cache_salt: Option<String>,
    /// Multimodal items, in any order.
    pub(crate) media: Vec<Medium>,
    /// Only these.
    pub(crate) candidates: Option<Vec<Candidate>>,
    /// Only those with these labels.
    pub(crate) labels: Option<Wanted>,
}

/// A LoRA adapter as a question names it.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    /// Its name.
    pub(crate) name: String,
    /// The engine's integer id.
    pub(crate) id: Option<i64>,
    /// The path as the engine sees it.
    pub(crate) path: Option<String>,
}

/// A multimodal item of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Medium {
    /// What identifies it.
    pub(crate) hash: String,
    /// Its first token.
    pub(crate) offset: u32,
    /// Its tokens.
    pub(crate) length: u32,
}

/// A pod, or one of its ranks.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The pod.
    pub(crate) pod: String,
    /// The rank; without one, all of the pod.
    pub(crate) rank: Option<u32>,
}

/// Whom a question is about.
#[derive(Debug, Default)]
struct Asked {
    /// All of the model if absent.
    workers: Option<Vec<WorkerId>>,
    /// Pods that nobody has registered.
    unknown: Vec<String>,
}

impl Question {
    /// The tenant who asks.
    pub(crate) fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or(Registration::DEFAULT_TENANT)
    }

    /// Hands the prompt to `read`.
    pub(super) fn with_prompt<T>(&self, read: impl FnOnce(Prompt<'_>) -> T) -> T {
        let mut media: Vec<&Medium> = self.media.iter().collect();
        media.sort_by_key(|medium| medium.offset);
        let items: Vec<Item<'_>> = media
            .into_iter()
            .map(|Medium { hash, offset, length }| Item {
                identifier: hash,
                offset: *offset,
                length: *length,
            })
            .collect();
        let lora = self.lora.as_ref().map(|Adapter { name, id, path }| Lora {
            name,
            id: *id,
            path: path.as_deref(),
        });
        read(Prompt {
            lora,
            cache_salt: self.cache_salt.as_deref(),
            items: &items,
            ..Prompt::new(&self.token_ids)
        })
    }
}

impl Service {
    /// Answers a question: hands the ranked workers to `read`, and the candidates that nobody has
    /// registered.
    pub(crate) fn answer<T>(
        &self,
        question: &Question,
        read: impl FnOnce(&[Row<'_>], &[String]) -> T,
    ) -> Result<T, Refusal> {
        self.with_request(question, |request, unknown| {
            self.score(request, |rows| read(rows, unknown))
        })
    }

    /// The same by what the engines call the prompt's blocks; of the question its tenant, model and
    /// candidates count.
    pub(crate) fn answer_named<T>(
        &self,
        question: &Question,
        names: &[Name],
        block_size: BlockSize,
        read: impl FnOnce(&[Row<'_>], &[String]) -> T,
    ) -> Result<T, Refusal> {
        let Asked { workers, unknown } = self.asked(question)?;
        let request = Request {
            tenant: question.tenant(),
            model: question.model.as_deref(),
            blocks: Blocks::Names { names, block_size },
            candidates: workers.as_deref(),
        };
        self.score(&request, |rows| read(rows, &unknown))
    }

    /// Why each worker scores what it does, and the candidates that nobody has registered.
    pub(crate) fn explain(
        &self,
        question: &Question,
    ) -> Result<(Vec<Explained>, Vec<String>), Refusal> {
        self.follows_engines("explain an answer")?;
        self.with_request(question, |request, unknown| {
            Ok((self.scout.explain(request)?, unknown.to_vec()))
        })
    }

    /// Hands a question to `read` as the index takes it.
    pub(super) fn with_request<T>(
        &self,
        question: &Question,
        read: impl FnOnce(&Request<'_>, &[String]) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let Asked { workers, unknown } = self.asked(question)?;
        question.with_prompt(|prompt| {
            let request = Request {
                tenant: question.tenant(),
                model: question.model.as_deref(),
                blocks: Blocks::Prompt(prompt),
                candidates: workers.as_deref(),
            };
            read(&request, &unknown)
        })
    }

    /// The workers that are asked about. A router may know of a pod before we do, and its question
    /// must not fail for that; a rank that a known pod does not have is a mistake.
    fn asked(&self, question: &Question) -> Result<Asked, Refusal> {
        let mut asked = Asked::default();
        let labelled = question.labels.as_ref().map(|wanted| self.labelled(wanted));
        let Some(candidates) = &question.candidates else {
            return Ok(Asked { workers: labelled, ..asked });
        };
        let mut workers = BTreeSet::new();
        for (n, Candidate { pod, rank }) in candidates.iter().enumerate() {
            let tenant = question.tenant();
            let found = self.workers_of(tenant, pod, *rank);
            if let (true, Some(rank)) = (found.is_empty(), rank)
                && !self.workers_of(tenant, pod, None).is_empty()
            {
                let wrong = format!("pod {pod:?} has no rank {rank}");
                return Err(Refusal::Candidate { n, wrong });
            }
            if found.is_empty() {
                asked.unknown.push(pod.clone());
            }
            workers.extend(found);
        }
        if let Some(labelled) = labelled {
            workers.retain(|worker| labelled.binary_search(worker).is_ok());
        }
        asked.workers = Some(workers.into_iter().collect());
        Ok(asked)
    }
}
