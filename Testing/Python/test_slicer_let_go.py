"""What has ended is gone: Qt keeps each slot that is connected, and with it all that its object holds."""

from __future__ import annotations

import gc
import sys
import time
import weakref

import numpy as np
import slicer_harness
from slicer_module import environment, fake_job, slicer

import qt
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.JobRunner import ChildJob, JobRunner
from SegGuidedMMRegGui.Steps import in_turns
from SegGuidedMMRegGui.StyleWatch import StyleWatch
from SegGuidedMMRegGui.TermChooser import TermChooser


def is_gone(reference) -> bool:
    """Nobody but Qt could still hold it."""
    slicer.app.processEvents()
    gc.collect()
    return reference() is None


def test_a_job_that_has_ended_is_gone():
    runner, ends = JobRunner(), []
    job = ChildJob(fake_job("tell('result', command='x')"), environment(), JobListener(finished=ends.append))
    runner.adopt("Job", job)
    job.start()
    slicer_harness.process_until(lambda: ends)
    runner.cleanup()
    reference = weakref.ref(job)
    del job
    assert ends[0].is_done
    assert is_gone(reference)


def test_a_job_that_was_killed_is_gone():
    job = ChildJob(fake_job("time.sleep(60)"), environment(), JobListener())
    job.start()
    job.kill()
    reference = weakref.ref(job)
    del job
    assert is_gone(reference)


def test_a_job_that_goes_on_without_slicer_is_followed_no_longer(tmp_path):
    job = DetachedJob(tmp_path, "train", fake_job("time.sleep(0.5)"), JobListener())
    job._begin(environment())
    job.leave()
    reference, child = weakref.ref(job), job._child
    del job
    assert is_gone(reference)
    child.wait(20)


def test_an_image_that_was_read_beside_is_gone_once_it_was_handed_on():
    seen = []
    Background(lambda: np.ones(1000), lambda image: seen.append(weakref.ref(image)), print)
    slicer_harness.process_until(lambda: seen)
    assert is_gone(seen[0])


def test_an_image_that_nobody_wants_any_more_is_gone_once_it_was_read():
    made = []

    def read():
        time.sleep(0.05)
        image = np.ones(1000)
        made.append(weakref.ref(image))
        return image

    Background(read, print, print).forget()
    slicer_harness.process_until(lambda: made)
    slicer_harness.process_until(lambda: is_gone(made[0]), 5)


class Large:
    """Stands for an image."""

    def draw(self) -> None:
        """As a picture in the colours of the palette."""


def test_a_picture_that_followed_the_style_is_gone_once_it_is_closed():
    large = Large()
    watch, reference = StyleWatch(large.draw), weakref.ref(large)
    watch.close()
    del watch, large
    assert is_gone(reference)


def test_what_was_shown_in_short_steps_is_gone():
    ended = []

    def showing(image):
        yield
        yield
        return type(image).__name__

    def show(image):
        in_turns(showing(image), lambda step: (image, step())[1], ended.append)

    image = Large()
    reference = weakref.ref(image)
    show(image)
    del image
    slicer_harness.process_until(lambda: ended)
    assert ended == ["Large"]
    assert is_gone(reference)


def test_what_was_to_be_shown_in_short_steps_is_gone_once_nobody_wants_it():
    image, offered = Large(), []
    reference = weakref.ref(image)

    def showing(image):
        yield
        yield image

    def go_on(step):
        offered.append(1)
        if len(offered) == 1:
            step()

    in_turns(showing(image), go_on, print)
    del image
    slicer_harness.process_until(lambda: len(offered) == 2)
    assert is_gone(reference)


def test_what_hears_of_a_reading_is_gone_at_once_when_it_was_told():
    """Not only when Python looks for circles of references, which takes its time in a large program."""
    image, told = Large(), []

    def hear(found, image=image):
        told.append(found)

    reading = Background(lambda: 1, hear, print)
    reference = weakref.ref(image)
    del image, hear
    slicer_harness.process_until(lambda: told)
    slicer.app.processEvents()
    assert reading.is_running is False
    assert reference() is None


def test_an_error_that_was_told_is_gone(capsys):
    said = []

    def read():
        raise ValueError("no such file")

    Background(read, print, said.append)
    slicer_harness.process_until(lambda: said)
    assert said == ["no such file"]


def test_a_chooser_of_terms_that_was_closed_is_gone():
    place = qt.QWidget()
    chooser = TermChooser(place, "femur", print)
    chooser.open()
    chooser.onCancel()
    reference = weakref.ref(chooser)
    del chooser
    assert is_gone(reference)


def test_a_timer_may_be_let_go_in_its_own_slot():
    from SegGuidedMMRegGui.Widgets import connect, let_go

    class Once:
        def __init__(self):
            self.timer, self.rang = qt.QTimer(), 0
            connect(self.timer, "timeout()", self.onTime)
            self.timer.start(0)

        def onTime(self):
            self.rang += 1
            let_go(self.timer, {"timeout()": self.onTime})

    once = Once()
    slicer_harness.process_until(lambda: once.rang)
    slicer.app.processEvents()
    assert once.rang == 1
    assert sys.getrefcount(once) <= 3
