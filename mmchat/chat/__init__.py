"""The conversation service: what the app and `mmchat ask` do with conversations. No screen, no Textual.

`service.ConversationService` sends, regenerates, corrects and compares; `answer_queue.AnswerQueue`
asks the engine and stores the answers; `events` has what both of them report.
"""
