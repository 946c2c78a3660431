"""Floor 5: a module or package per task: data, model, loss, report; a task never imports another."""
