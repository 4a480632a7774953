"""Tasks of a backend that transcribes several examples at once."""

from helpers.evaluation_runs import LoadFake, make_dataset, read

from whisperkit_tools.errors import AudioError
from whisperkit_tools.eval.runs.tasks import EvaluateConfig, tasks
from whisperkit_tools.eval.runs.worker import NO_SPEECH, STREAMING, Worker, WorkerFactory
from whisperkit_tools.pipeline.bundle_backend import BundleTranscriber
from whisperkit_tools.transcribe.many import TranscriptionResult
from whisperkit_tools.transcribe.options import TranscribeOptions


class Batching:
    """Transcribes in batches as the fake does alone. A batch ends early after `until` results."""

    def __init__(self, until=None):
        self.alone = LoadFake()()
        self.until = until
        self.asked, self.single = [], 0

    def transcribe(self, audio, *, language=None, words=False):
        self.single += 1
        return self.alone.transcribe(audio, language=language, words=words)

    def transcribe_many(self, requests):
        found = list(enumerate(requests))
        self.asked = [request for _, request in found]
        for done, (index, request) in enumerate(reversed(found)):
            if done == self.until:
                raise RuntimeError("the batch broke")
            try:
                yield index, self.alone.transcribe(request.read(), language=request.language, words=request.words)
            except AudioError as error:
                yield index, error


def planned(tmp_path, **options):
    return tasks(make_dataset(tmp_path, 4, broken=(2,)), EvaluateConfig(**options), read)


def without_times(results):
    return {
        result.number: (result.error, result.duration_s, result.transcription and result.transcription.text)
        for result in results
    }


def test_a_batch_gives_the_results_of_one_task_after_another(tmp_path):
    chosen = planned(tmp_path, checks_no_speech=False)
    wanted = without_times(map(Worker(LoadFake()(), read).perform, chosen))
    backend = Batching()
    assert without_times(Worker(backend, read).perform_all(chosen)) == wanted
    assert backend.single == 0
    assert wanted[2][0] is not None


def test_what_a_broken_batch_leaves_is_done_alone_and_said(tmp_path, caplog):
    chosen = planned(tmp_path, checks_no_speech=False)
    backend = Batching(until=2)
    results = list(Worker(backend, read).perform_all(chosen))
    assert len(results) == len(chosen)
    assert without_times(results) == without_times(map(Worker(LoadFake()(), read).perform, chosen))
    assert backend.single == len(chosen) - 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("decoding in batches failed, so recordings go on one by one: ")


def test_streams_are_simulated_alone_and_clips_without_speech_are_marked(tmp_path):
    chosen = [task for task in planned(tmp_path, streaming=True) if task.number != 2]
    backend = Batching()
    results = list(Worker(backend, read).perform_all(chosen))
    assert sorted(result.number for result in results) == [task.number for task in chosen]
    together = [task for task in chosen if task.part != STREAMING]
    assert [request.is_silent for request in backend.asked] == [task.part == NO_SPEECH for task in together]


def test_workers_start_with_one_task_at_a_time_where_a_backend_takes_no_more(tmp_path):
    chosen = planned(tmp_path, checks_no_speech=False)
    worker = WorkerFactory(LoadFake(), read).start()
    assert [result.number for result in worker.perform_all(chosen)] == [task.number for task in chosen]


def test_a_clip_without_speech_gets_one_short_attempt():
    seen = []

    class Model:
        class special:
            is_multilingual = True

        class sizes:
            has_alignment = False

        def transcribe_many(self, requests, *, batch_size):
            seen.extend(requests)
            return [TranscriptionResult(0, error=AudioError("none"))]

    from whisperkit_tools.eval.backends.base import BackendRequest

    backend = BundleTranscriber(Model(), TranscribeOptions(temperatures=(0.0, 0.5)), 3)
    requests = [BackendRequest(read, "en"), BackendRequest(read, "en", is_silent=True)]
    ((index, error),) = backend.transcribe_many(requests)
    assert (index, str(error)) == (0, "none")
    assert [(one.options.temperatures, one.options.max_new_tokens) for one in seen] == [
        ((0.0, 0.5), None),
        ((0.0,), 64),
    ]
