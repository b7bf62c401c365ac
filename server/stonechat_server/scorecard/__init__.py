"""`stonechat check`: which fields of the chat endpoint a server honours, one by one."""
